"""A stand-in for the paper's fine-tuning mix: as many samples of each set as are published, with assumed lengths.

The counts are the published ones that ``data_pipeline.sources`` states; the mix665k of ShareGPT4V is split as LLaVA-1.5
(arXiv 2310.03744, table 7) lists its parts. Picture sizes and text lengths are ASSUMED here, of the kind that the sets
are known for (photographs of COCO with a longer side of 640, scanned pages, charts of one size, conversations without
a picture); nobody measured them on the published files. A prepared data set's own manifest takes their place.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.dataset.manifest import Manifest

COCO = ((640, 480, 0.60), (480, 640, 0.20), (640, 427, 0.14), (427, 640, 0.06))


@dataclass(frozen=True, kw_only=True)
class Part:
    """Samples of one kind."""

    name: str
    count: int
    """Published."""
    sizes: tuple[tuple[int, int, float], ...] = ()
    """Width, height and share of the pictures; none for conversations without one."""
    spread: float = 0.0
    """Standard deviation of the logarithm of each side, about its size."""
    text: float
    """Median of the text's tokens, markup included."""
    text_spread: float
    """Standard deviation of its logarithm."""


PARTS = (
    Part(name="mix665k: COCO", count=363_707, sizes=COCO, text=220, text_spread=0.6),
    Part(
        name="mix665k: GQA, Visual Genome",
        count=158_523,
        sizes=((500, 375, 0.5), (800, 600, 0.5)),
        spread=0.1,
        text=330,
        text_spread=0.5,
    ),
    Part(name="mix665k: OCR-VQA", count=80_000, sizes=((330, 500, 1.0),), spread=0.12, text=180, text_spread=0.3),
    Part(name="mix665k: TextCaps", count=21_953, sizes=((1024, 768, 0.7), (768, 1024, 0.3)), text=110, text_spread=0.3),
    Part(name="mix665k: text only", count=40_688, text=1100, text_spread=0.6),
    Part(
        name="ALLaVA-VFLAN",
        count=203_065,
        sizes=((640, 480, 0.5), (400, 400, 0.5)),
        spread=0.35,
        text=320,
        text_spread=0.4,
    ),
    Part(
        name="DocVQA", count=10_194, sizes=((1700, 2200, 0.9), (2200, 1700, 0.1)), spread=0.1, text=150, text_spread=0.4
    ),
    Part(
        name="SynthDoG-EN",
        count=29_765,
        sizes=((1000, 1300, 0.5), (1300, 1000, 0.5)),
        spread=0.3,
        text=350,
        text_spread=0.5,
    ),
    Part(
        name="ChartQA", count=18_317, sizes=((850, 600, 0.7), (800, 1100, 0.3)), spread=0.15, text=100, text_spread=0.3
    ),
    Part(name="DVQA", count=10_000, sizes=((448, 448, 1.0),), text=330, text_spread=0.3),
    Part(name="AI2D", count=12_413, sizes=((600, 450, 1.0),), spread=0.4, text=120, text_spread=0.3),
    Part(name="GeoQA+", count=72_318, sizes=((300, 180, 1.0),), spread=0.3, text=220, text_spread=0.4),
)
"""All of them are 1,020,943 samples."""

LONGEST_TEXT = 2048
"""Tokens; longer conversations are taken as cut there, as LLaVA's are."""


def assumed_mix(seed: int = 0) -> Manifest:
    """The manifest of the mix, without any shard: it can be planned with and not read."""
    random = np.random.default_rng(seed)
    counts = np.array([part.count for part in PARTS])
    text, images = [], []
    widths: list[NDArray[np.float64]] = []
    heights: list[NDArray[np.float64]] = []
    for part in PARTS:
        tokens = np.rint(part.text * np.exp(part.text_spread * random.standard_normal(part.count)))
        text.append(np.clip(tokens, 20, LONGEST_TEXT))
        images.append(np.full(part.count, int(bool(part.sizes))))
        if part.sizes:
            shares = np.array([share for *_, share in part.sizes])
            chosen = random.choice(len(part.sizes), part.count, p=shares)
            for side, lengths in enumerate((widths, heights)):
                length = np.array([size[side] for size in part.sizes])[chosen]
                lengths.append(length * np.exp(part.spread * random.standard_normal(part.count)))
    total = int(counts.sum())
    nothing = np.zeros(total, dtype=np.int64)
    number_of_images = np.concatenate(images)
    return Manifest(
        folder="(assumed mix)",
        shard_folder="(none)",
        hash="",
        info={},
        ids=pa.array([], pa.string()),
        sha256=pa.array([], pa.binary(32)),
        keys=random.integers(0, 2**63 - 1, total),
        source_names=[part.name for part in PARTS],
        source=np.repeat(np.arange(len(PARTS)), counts).astype(np.int32),
        shard_names=["(none)"],
        shard=nothing.astype(np.int32),
        json_offset=nothing,
        json_size=nothing,
        text_tokens=np.concatenate(text).astype(np.int64) + number_of_images,
        loss_tokens=np.concatenate(text).astype(np.int64) // 2,  # assumed: as many learnt as read
        first_image=np.concatenate([[0], np.cumsum(number_of_images)]),
        image_offset=nothing,
        image_size=nothing,
        heights=_pixels(heights),
        widths=_pixels(widths),
    )


def _pixels(lengths: list[NDArray[np.float64]]) -> NDArray[np.int64]:
    """Rounded to 10, so that there are few different sizes to plan."""
    return (np.rint(np.clip(np.concatenate(lengths), 100, 4000) / 10) * 10).astype(np.int64)
