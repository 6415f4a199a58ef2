"""The benchmark of the data path from end to end."""

import os
import platform
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data_pipeline.anyres import CLIP_STD
from data_pipeline.benchmark.defaults import SIZES
from data_pipeline.benchmark.measure import interleaved
from data_pipeline.benchmark.pictures import open_shard, write_shard
from data_pipeline.benchmark.sides import SIDES, SLOW, Side, open_sides, unavailable
from data_pipeline.benchmark.table import Table, make_rows
from data_pipeline.config import ImageGeometry

MAX_DRIFT = 0.5
"""Mean difference from transformers' tiles, in levels of 0 to 255, beyond which a side is not timed. DALI's resize
differs by 0.15."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the benchmark found."""

    environment: dict[str, Any]
    images: int
    unavailable: dict[str, str]
    """Sides that cannot run here, and what they need."""
    tables: list[Table]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def run(
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    threads: Sequence[int] = (1, 2),
    rounds: int = 7,
    images: int = 16,
    geometry: ImageGeometry | None = None,
) -> Report:
    """Write a shard of each size, check that all sides make the same tiles of it, and time them.

    Args:
        sizes: width and height of the images in pixels.
        threads: numbers of threads to measure with.
        rounds: rounds that count; every side works through a shard in each.
        images: images in a shard.
        geometry: of the tiles; the paper's if None.

    Raises:
        ValueError: a side makes other tiles than transformers.
    """
    geometry = geometry or ImageGeometry()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the threads are over images
    missing = unavailable()
    tables = []
    runs = len(sizes) * len(threads) * (1 + rounds) * (len(SIDES) - len(missing))
    try:
        with tempfile.TemporaryDirectory() as folder, tqdm(total=runs, unit="run", file=sys.stderr) as bar:
            for width, height in sizes:
                path = Path(folder) / f"{width}x{height}.tar"
                bar.set_description(f"writing {path.name}")
                write_shard(path, width, height, images)
                for count in threads:
                    bar.set_description(f"{width}x{height}, {count} thread{'s' if count > 1 else ''}")
                    with open_shard(path) as shard, open_sides(shard, geometry, count) as sides:
                        drift = largest_drift(sides)
                        times = interleaved(
                            {name: partial(run_once, side) for name, side in sides.items()}, rounds, device, bar.update
                        )
                        kilobytes = mean(len(shard.read(name)) for name in shard.names) / 1000
                    tables.append(
                        Table(
                            width=width,
                            height=height,
                            threads=count,
                            kilobytes=kilobytes,
                            largest_drift=drift,
                            rows=make_rows(times, images),
                        )
                    )
    finally:
        torch.set_num_threads(before)
    return Report(environment=environment(device), images=images, unavailable=missing, tables=tables)


def run_once(side: Side) -> None:
    """Make all tiles, and let each image's go as a trainer does."""
    deque(side(), maxlen=0)


def largest_drift(sides: dict[str, Side]) -> float:
    """Largest mean difference of a side's tiles from those of transformers (PIL), in levels of 0 to 255.

    Raises:
        ValueError: the tiles of a side have another shape, or differ by more than ``MAX_DRIFT``.
    """
    largest = 0.0
    for name, side in sides.items():
        for theirs, ours in zip(sides[SLOW](), side(), strict=True):
            if theirs.shape != ours.shape:
                raise ValueError(f"{name}: tiles of shape {list(ours.shape)}, {SLOW}: {list(theirs.shape)}")
            largest = max(largest, _levels(theirs, ours.cpu()))
            if largest > MAX_DRIFT:
                raise ValueError(f"{name}: tiles differ from {SLOW} by {largest:.2f} levels on average")
    return largest


def _levels(theirs: Tensor, ours: Tensor) -> float:
    return float(((theirs - ours).abs() * torch.tensor(CLIP_STD).view(3, 1, 1)).mean() * 255)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and command."""
    packages = ["torch", "transformers", "pillow", "simplejpeg"]
    return {name: version(name) for name in packages} | {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        "cores": len(os.sched_getaffinity(0)),
        "command": " ".join(["python", *sys.argv]),
    }
