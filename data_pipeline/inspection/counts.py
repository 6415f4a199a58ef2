"""Counts of a prepared data set, from its manifest alone.

Shapes: n samples.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import ImageGeometry
from data_pipeline.dataset.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class SampleLengths:
    """Tokens of each sample in the language model."""

    text: NDArray[np.int64]
    """int64 [n], all that are not images."""
    visual: NDArray[np.int64]
    """int64 [n], visual tokens of LLaVA-NeXT."""
    kept: NDArray[np.int64]
    """int64 [n], visual tokens that are expected after compression, rounded up as packing does."""

    @classmethod
    def of(cls, manifest: Manifest, geometry: ImageGeometry, kept_ratio: float) -> "SampleLengths":
        """Count them.

        Args:
            manifest: the data set.
            geometry: how images are tiled.
            kept_ratio: share of the visual tokens that is expected to enter the language model, in (0, 1].

        Raises:
            ValueError: an image is too elongated for the canvases.
        """
        assert 0 < kept_ratio <= 1
        visual = manifest.visual_tokens(geometry)
        return cls(text=manifest.text_only_tokens(), visual=visual, kept=np.ceil(visual * kept_ratio).astype(np.int64))

    @property
    def before(self) -> NDArray[np.int64]:
        """int64 [n], tokens of each sample if nothing is compressed."""
        return self.text + self.visual

    @property
    def after(self) -> NDArray[np.int64]:
        """int64 [n], tokens of each sample after the expected compression."""
        return self.text + self.kept


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What one source holds."""

    name: str
    samples: int
    published: int | None
    """Samples that its authors publish, where that is known."""
    left_out: dict[str, int]
    """Samples left out, by reason."""
    changed: dict[str, int]
    """Samples accepted with a change, by kind."""
    images: int
    text_tokens: int
    loss_tokens: int
    visual_tokens: int
    kept_tokens: int
    """Visual tokens after the expected compression."""

    @property
    def records(self) -> int:
        """Samples with those left out."""
        return self.samples + sum(self.left_out.values())

    @property
    def difference(self) -> int | None:
        """Records beyond the published number; negative where some are missing."""
        return None if self.published is None else self.records - self.published


def count_sources(manifest: Manifest, lengths: SampleLengths) -> list[SourceCounts]:
    """Counts of each source, in the order of ``dataset.json``; a source without a sample counts 0."""
    per_sample = {
        "samples": np.ones(len(manifest), dtype=np.int64),
        "images": np.diff(manifest.first_image),
        "text_tokens": lengths.text,
        "loss_tokens": manifest.loss_tokens,
        "visual_tokens": lengths.visual,
        "kept_tokens": lengths.kept,
    }
    number = {name: index for index, name in enumerate(manifest.source_names)}
    sums: dict[str, NDArray[np.int64]] = {}
    for key, values in per_sample.items():
        sums[key] = np.zeros(len(number), dtype=np.int64)  # exact, as bincount's weights would not be
        np.add.at(sums[key], manifest.source, values)
    return [
        SourceCounts(
            name=name,
            published=source["published"],
            left_out=source["left_out_by_reason"],
            changed=source["accepted_with_change"],
            **{key: int(values[number[name]]) if name in number else 0 for key, values in sums.items()},
        )
        for name, source in manifest.info["sources"].items()
    ]


def total_counts(counts: Sequence[SourceCounts]) -> SourceCounts:
    """All sources together; ``published`` is known if it is of each."""
    published = [count.published for count in counts if count.published is not None]
    sums = {
        key: sum(getattr(count, key) for count in counts)
        for key in ("samples", "images", "text_tokens", "loss_tokens", "visual_tokens", "kept_tokens")
    }
    return SourceCounts(
        name="all",
        published=sum(published) if len(published) == len(counts) else None,
        left_out=dict(sum((Counter(count.left_out) for count in counts), Counter()).most_common()),
        changed=dict(sum((Counter(count.changed) for count in counts), Counter()).most_common()),
        **sums,
    )
