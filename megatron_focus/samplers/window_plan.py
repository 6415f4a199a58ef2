"""Where the visual tokens of a row can come from: everything about them that image sizes alone decide.

The plan lists the *candidates*, every token that could enter the sequence, in the order in which they would enter.
Which of them do depends on the scale chosen for each window and is decided on the device (``vision_guided.py``); the
plan itself is built on the host, without reading a single feature.

Shapes: I images, t tiles, g cells along a tile, w window side, K = (g / w)^2 windows of a tile, M = t * K windows,
E candidates.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.anyres import plan_tiles, valid_cells
from data_pipeline.config import ImageGeometry

NEWLINE_SCALE = -1
"""``scale`` of a candidate that is always taken: newlines, and cells that no sampler touches."""


@dataclass(kw_only=True)
class WindowPlan:
    """Candidates and windows of the images of one row."""

    source: Tensor
    """int64 [E], row of the candidate in the token source: cells first, then each pooled scale, the newline last."""
    window: Tensor
    """int64 [E], window the candidate belongs to; M for candidates that are always taken."""
    scale: Tensor
    """int64 [E], index of the scale it belongs to, or ``NEWLINE_SCALE``."""
    image: Tensor
    """int64 [E], image of the candidate."""
    newline: Tensor
    """bool [E], candidates that are newlines."""
    cell_valid: Tensor
    """bool [t, g, g], cells inside the picture (unpad); all true in global views."""
    window_counted: Tensor
    """bool [M], windows that take part in the sampling and hold at least one valid cell."""
    context_tile: Tensor
    """int64 [t], tile that is the global view of each tile's image."""
    num_images: int
    """I."""
    num_windows: int
    """Counted windows (N of Eq. 4), known without looking at any feature."""
    all_valid: bool
    """No cell is invalid, so pooling needs no mask."""

    def to(self, device: torch.device) -> "WindowPlan":
        """A copy whose tensors lie on ``device``."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        moved: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in values if isinstance(v, Tensor)}
        return replace(self, **moved)


def plan_windows(
    image_sizes: Tensor, geometry: ImageGeometry, window: int, scales: list[str], global_view: str
) -> WindowPlan:
    """Plan the visual tokens of a row.

    Args:
        image_sizes: int [I, 2], height and width of each image in pixels, on the host.
        geometry: tiles, patches and pinpoints.
        window: side w of a window in cells.
        scales: kernels to choose from, finest first; empty for LLaVA-NeXT's own tokens (no sampler).
        global_view: ``compress``, ``keep`` or ``drop``.

    Raises:
        ValueError: an image is so elongated that no cell of it is inside the picture, and its global view is dropped.
    """
    builder = _Builder(geometry, window, scales, global_view)
    for image, (height, width) in enumerate(image_sizes.tolist()):
        builder.add_image(image, height, width)
    return builder.finish(len(image_sizes))


class _Builder:
    """Collects the candidates image by image; sources are absolute once the number of tiles is known."""

    def __init__(self, geometry: ImageGeometry, window: int, scales: list[str], global_view: str) -> None:
        self.geometry, self.w = geometry, window
        self.g = geometry.cells_per_side
        self.per_side = self.g // window
        self.kernels = [None if s == "discard" else tuple(map(int, s.split("x"))) for s in scales]
        self.global_view = global_view
        self.columns: dict[str, list[np.ndarray]] = {k: [] for k in ("block", "offset", "window", "scale", "image")}
        self.cell_valid: list[np.ndarray] = []
        self.counted: list[np.ndarray] = []
        self.context: list[int] = []
        self.tiles = 0

    def add_image(self, image: int, height: int, width: int) -> None:
        g, plan = self.g, plan_tiles(height, width, self.geometry)
        crop = valid_cells(height, width, plan, self.geometry)
        valid = np.zeros((plan.rows * g, plan.cols * g), dtype=bool)
        valid[crop.top : crop.bottom, crop.left : crop.right] = True
        first_local = self.tiles + 1
        tiles = first_local + np.arange(plan.rows * plan.cols).reshape(plan.rows, plan.cols)
        everything = np.ones((g, g), dtype=bool)
        sampled = bool(self.kernels)

        if sampled and self.global_view == "compress":
            self._windows(image, np.array([[self.tiles]]), everything, newlines=False)
        elif not sampled or self.global_view == "keep":
            self._cells(image, np.array([[self.tiles]]), everything, newline_rows=range(0))
        if sampled:
            self._windows(image, tiles, valid, newlines=True)
        else:
            self._cells(image, tiles, valid, newline_rows=range(crop.top, crop.bottom))

        local_valid = valid.reshape(plan.rows, g, plan.cols, g).swapaxes(1, 2).reshape(-1, g, g)
        self.cell_valid += [everything[None], local_valid]
        counted = local_valid.reshape(-1, self.per_side, self.w, self.per_side, self.w).any((2, 4)).reshape(-1)
        self.counted += [np.full(self.per_side**2, self.global_view == "compress"), counted]
        self.context += [self.tiles] * (1 + tiles.size)
        self.tiles += 1 + tiles.size

    def _cells(self, image: int, tiles: np.ndarray, valid: np.ndarray, newline_rows: range) -> None:
        """Every valid cell in raster order, the baseline's way: rows of a crop without width have newlines too."""
        g = self.g
        row, col = np.nonzero(valid)
        source = tiles[row // g, col // g] * g * g + row % g * g + col % g
        key = row * (valid.shape[1] + 1) + col
        self._append(image, key, 0, source, -1, NEWLINE_SCALE, np.array(newline_rows, int), valid.shape[1] + 1)

    def _windows(self, image: int, tiles: np.ndarray, valid: np.ndarray, newlines: bool) -> None:
        """The pooled cells of every scale of every window, windows in raster order over the whole map.

        A newline stands behind the rows of windows with a valid cell, so a crop without width has none.
        """
        g, w = self.g, self.w
        width = valid.shape[1] // w  # windows along a row of the map
        slots = w * w * len(self.kernels)
        parts: list[tuple[np.ndarray, ...]] = []
        for index, kernel in enumerate(self.kernels):
            if kernel is None:  # "discard": a window that leaves nothing
                continue
            kh, kw = kernel
            pooled = valid.reshape(valid.shape[0] // kh, kh, valid.shape[1] // kw, kw).any((1, 3))
            row, col = np.nonzero(pooled)
            gh, gw = g // kh, g // kw  # pooled cells along a tile
            tile = tiles[row // gh, col // gw]
            window_row, window_col = row * kh // w, col * kw // w
            inside = (row * kh % w // kh) * (w // kw) + col * kw % w // kw
            key = (window_row * (width + 1) + window_col) * slots + index * w * w + inside
            source = tile * gh * gw + row % gh * gw + col % gw
            in_tile = window_row % self.per_side * self.per_side + window_col % self.per_side
            number = tile * self.per_side**2 + in_tile
            parts.append((key, np.full_like(key, index), source, number, np.full_like(key, index)))
        key, block, source, number, scale = (np.concatenate(column) for column in zip(*parts, strict=True))
        newline_rows = np.unique(np.nonzero(valid)[0] // w) if newlines else np.zeros(0, int)
        self._append(image, key, block, source, number, scale, newline_rows, (width + 1) * slots)

    def _append(
        self,
        image: int,
        key: np.ndarray,
        block: np.ndarray | int,
        source: np.ndarray,
        window: np.ndarray | int,
        scale: np.ndarray | int,
        newline_rows: np.ndarray,
        row_stride: int,
    ) -> None:
        """Merge candidates and newlines by their place in the sequence (``key``)."""
        count = len(newline_rows)
        # A newline stands behind everything of its row: at the last key before the next row begins.
        keys = np.concatenate([key, newline_rows * row_stride + row_stride - 1])
        order = np.argsort(keys, kind="stable")
        for name, value, newline_value in (
            ("block", block, -1),
            ("offset", source, 0),
            ("window", window, -1),
            ("scale", scale, NEWLINE_SCALE),
            ("image", image, image),
        ):
            column = np.concatenate([np.broadcast_to(value, key.shape), np.full(count, newline_value)])
            self.columns[name].append(column[order])

    def finish(self, num_images: int) -> WindowPlan:
        def column(name: str) -> np.ndarray:
            parts = self.columns[name]
            return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

        block, window = column("block"), column("window")
        cells = self.tiles * self.g * self.g
        # Rows of each block in the token source; a 1x1 scale reads the cells themselves.
        starts, end = [0], cells
        for kernel in self.kernels:
            pooled = kernel is not None and kernel != (1, 1)
            starts.append(end if pooled else 0)
            end += cells // (kernel[0] * kernel[1]) if pooled and kernel is not None else 0
        raw = column("scale") == NEWLINE_SCALE
        start = np.where(raw, 0, np.array(starts)[np.where(raw, 0, block + 1)])
        newline, image = block == -1, column("image")
        empty = np.flatnonzero(np.bincount(image, minlength=num_images) == 0)
        if len(empty) > 0:
            raise ValueError(
                f"image {empty[0]} of the row leaves no visual token under model.vision_sampler.global_view=drop: "
                "it is too elongated for the cells of its tiles; use compress or keep"
            )
        source = np.where(newline, end, start + column("offset"))
        valid = np.concatenate(self.cell_valid) if self.cell_valid else np.zeros((0, self.g, self.g), bool)
        counted = np.concatenate(self.counted) if self.counted and self.kernels else np.zeros(0, bool)
        return WindowPlan(
            source=torch.from_numpy(source),
            window=torch.from_numpy(np.where(window < 0, self.tiles * self.per_side**2, window)),
            scale=torch.from_numpy(column("scale")),
            image=torch.from_numpy(image),
            newline=torch.from_numpy(newline),
            cell_valid=torch.from_numpy(valid),
            window_counted=torch.from_numpy(counted),
            context_tile=torch.tensor(self.context, dtype=torch.int64),
            num_images=num_images,
            num_windows=int(counted.sum()),
            all_valid=bool(valid.all()),
        )
