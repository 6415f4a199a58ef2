"""The numbers behind the charts, from the manifest alone.

Shapes: n samples, I images, S sources, b bins.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.anyres import plan_tiles
from data_pipeline.config import ImageGeometry
from data_pipeline.dataset.manifest import Manifest


@dataclass(frozen=True)
class Histogram:
    """Counts of one or several series over the same bins; each bin contains its left edge, the last one both."""

    edges: NDArray[np.float64]
    """float64 [b + 1]."""
    counts: NDArray[np.int64]
    """int64 [series, b]."""


def linear_histogram(series: list[NDArray[np.int64]], bins: int = 60) -> Histogram:
    """Over bins of equal width from 0, a whole number wide each, to beyond the largest value."""
    largest = max((int(values.max()) for values in series if len(values)), default=0)
    width = max(1, -(-(largest + 1) // bins))
    edges = np.arange(-(-(largest + 1) // width) + 1, dtype=np.float64) * width
    return Histogram(edges, np.stack([np.histogram(values, edges)[0] for values in series]))


def log_histogram(series: list[NDArray[np.int64]], bins: int = 40) -> Histogram:
    """Over bins of equal ratio, for values of at least 1."""
    lowest = min((int(values.min()) for values in series if len(values)), default=1)
    largest = max((int(values.max()) for values in series if len(values)), default=1)
    edges = np.geomspace(max(lowest, 1), max(largest, lowest) + 1, bins + 1)
    edges[0] = max(lowest, 1)  # geomspace rounds
    return Histogram(edges, np.stack([np.histogram(values, edges)[0] for values in series]))


def split_by_source(manifest: Manifest, values: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The values of each source's samples, the source with most samples first."""
    sizes = np.bincount(manifest.source, minlength=len(manifest.source_names))
    by_source = np.argsort(manifest.source, kind="stable")
    parts = np.split(values[by_source], np.cumsum(sizes)[:-1])
    return {manifest.source_names[s]: parts[s] for s in np.argsort(-sizes, kind="stable").tolist()}


def image_grids(manifest: Manifest, geometry: ImageGeometry) -> NDArray[np.int64]:
    """int64 [I, 2], rows and columns of the tiles of each image's canvas."""
    sizes, inverse = np.unique(np.stack([manifest.heights, manifest.widths], 1), axis=0, return_inverse=True)
    plans = [plan_tiles(height, width, geometry) for height, width in sizes.tolist()]  # each size is planned once
    grids = np.array([(plan.rows, plan.cols) for plan in plans], dtype=np.int64).reshape(-1, 2)
    return grids[inverse.reshape(-1)]


def count_grids(manifest: Manifest, geometry: ImageGeometry) -> dict[tuple[int, int], int]:
    """Images on each canvas of the geometry, by its rows and columns of tiles; canvases that none uses count 0."""
    tile = geometry.tile_size
    found = dict.fromkeys(sorted({(h // tile, w // tile) for w, h in geometry.grid_pinpoints}), 0)
    grids, counts = np.unique(image_grids(manifest, geometry), axis=0, return_counts=True)
    return found | {(rows, cols): count for (rows, cols), count in zip(grids.tolist(), counts.tolist(), strict=True)}
