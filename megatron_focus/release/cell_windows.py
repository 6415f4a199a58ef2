"""Cutting the cells of images into windows.

Shapes: I images, t tiles of all images, g cells along a tile side, w window side, W windows, C hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .image_geometry import ImageGrid

GLOBAL_VIEW, LOCAL_MAP = 0, 1
DROPPED = -1
"""Scale of a window without a valid cell."""


@dataclass
class Windows:
    """All windows of the views that are sampled, tile by tile."""

    cells: Tensor
    """[W, w, w, C] features; -inf at cells that are not valid, which so never win a maximum."""
    valid: Tensor
    """bool [W, w, w], cells that show the image rather than padding."""
    tile: Tensor
    """int64 [W], index of the window's tile."""
    image: Tensor
    """int64 [W]."""
    view: Tensor
    """int64 [W], ``GLOBAL_VIEW`` or ``LOCAL_MAP``."""
    row: Tensor
    """int64 [W], first row of cells, counted in the view."""
    column: Tensor
    """int64 [W], first column of cells, counted in the view."""
    choice: Tensor
    """int64 [W], index of the chosen scale, ``DROPPED`` without a valid cell."""

    @property
    def has_cells(self) -> Tensor:
        """bool [W], windows with a valid cell."""
        return self.valid.flatten(1).any(1)


def cut_windows(features: Tensor, grids: list[ImageGrid], window: int, views: tuple[int, ...]) -> Windows:
    """Cut the tiles into windows; all windows choose the first scale until a selector decides.

    Args:
        features: [t, g*g, C], for each image its global view and then its tiles in row order.
        grids: the grid of each image.
        window: w, which divides g, so that no window crosses a tile.
        views: which of ``GLOBAL_VIEW`` and ``LOCAL_MAP`` to cut.
    """
    g = grids[0].cells_per_side
    rows: list[tuple[int, ...]] = []  # tile, image, view, first row, first column, crop
    first_tile = 0
    for image, grid in enumerate(grids):
        rows.append((first_tile, image, GLOBAL_VIEW, 0, 0, 0, g, 0, g))
        for index in range(grid.num_tiles - 1):
            tile_row, tile_column = divmod(index, grid.tile_columns)
            rows.append((first_tile + 1 + index, image, LOCAL_MAP, tile_row * g, tile_column * g, *grid.crop))
        first_tile += grid.num_tiles
    table = torch.tensor([row for row in rows if row[2] in views], device=features.device).view(-1, 9)

    per_side = g // window
    offsets = torch.arange(0, g, window, device=features.device)
    row_offset, column_offset = (axis.flatten() for axis in torch.meshgrid(offsets, offsets, indexing="ij"))
    first_row = (table[:, 3, None] + row_offset).flatten()
    first_column = (table[:, 4, None] + column_offset).flatten()
    of_tile = table.repeat_interleave(per_side**2, dim=0)
    steps = torch.arange(window, device=features.device)
    cell_row, cell_column = first_row[:, None] + steps, first_column[:, None] + steps
    row_valid = (cell_row >= of_tile[:, 5, None]) & (cell_row < of_tile[:, 6, None])
    column_valid = (cell_column >= of_tile[:, 7, None]) & (cell_column < of_tile[:, 8, None])
    valid = row_valid[:, :, None] & column_valid[:, None, :]

    shape = (len(table), per_side, window, per_side, window, features.shape[-1])
    tiles = features if len(table) == len(features) else features[table[:, 0]]
    cells = tiles.view(shape).transpose(2, 3).flatten(0, 2)
    if not bool(valid.all()):
        cells = cells.masked_fill(~valid[..., None], -torch.inf)
    choice = torch.where(valid.flatten(1).any(1), 0, DROPPED)
    return Windows(cells, valid, of_tile[:, 0], of_tile[:, 1], of_tile[:, 2], first_row, first_column, choice)


def first_tiles(grids: list[ImageGrid], device: torch.device) -> Tensor:
    """int64 [I], the tile that is each image's global view."""
    counts = torch.tensor([grid.num_tiles for grid in grids], device=device)
    return counts.cumsum(0) - counts


def max_of_cells(blocks: Tensor) -> Tensor:
    """[W, r, kh, c, kw, C] -> [W, r, c, C], the maximum over the kh * kw cells of each block."""
    # Over one dimension at a time: on a CPU torch takes some 20 times longer over both at once.
    over_columns = blocks.amax(4) if blocks.shape[4] > 1 else blocks.squeeze(4)
    return over_columns.amax(2) if blocks.shape[2] > 1 else over_columns.squeeze(2)
