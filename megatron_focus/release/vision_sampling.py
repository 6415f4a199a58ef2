"""Vision-guided sampling: each window of cells becomes as many tokens as its likeness to the whole image asks for.

FocusLLaVA, Eq. 1-5 and 10. Shapes: I images, t tiles of all images, g cells along a tile side, w window side, W
windows, S scales, C hidden size, n tokens.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_focus_llava import scale_kernel
from .image_geometry import ImageGrid

GLOBAL_VIEW, LOCAL_MAP = 0, 1
DROPPED = -1
"""Scale of a window without a valid cell."""


@dataclass
class Windows:
    """All windows of the views that are sampled, tile by tile."""

    cells: Tensor
    """[W, w, w, C] features."""
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


@dataclass
class VisualTokens:
    """The tokens of all images, image after image, in the order in which the language model reads them."""

    tokens: Tensor
    """[n, C]."""
    image: Tensor
    """int64 [n]."""
    is_newline: Tensor
    """bool [n]."""
    footprint: Tensor
    """int64 [n, 5], view and covered cells (top, bottom, left, right), half-open; an empty one for newlines."""
    counts: Tensor
    """int64 [I], tokens of each image."""
    windows: Windows


@dataclass
class _Group:
    """Some tokens on their way into the sequence."""

    tokens: Tensor
    image: Tensor
    view: Tensor
    order: Tensor
    """int64 [k, 3], where a token stands in its view: row of windows, column of windows, cell of the window."""
    footprint: Tensor
    is_newline: bool


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
    cells = features[table[:, 0]].view(shape).transpose(2, 3).flatten(0, 2)
    choice = torch.where(valid.flatten(1).any(1), 0, DROPPED)
    return Windows(cells, valid, of_tile[:, 0], of_tile[:, 1], of_tile[:, 2], first_row, first_column, choice)


def _order_key(group: _Group, largest: Tensor) -> Tensor:
    """int64 [k], one number that sorts tokens by image, view and their order in the view."""
    key = group.image * 2 + group.view
    for column in range(3):
        key = key * (largest[column] + 1) + group.order[:, column]
    return key


def _pooled_group(windows: Windows, chosen: Tensor, kernel: tuple[int, int], factor: Tensor | None) -> _Group:
    """Max-pool the chosen windows; pooled cells without a valid cell are left out."""
    window = windows.valid.shape[1]
    rows, columns = window // kernel[0], window // kernel[1]
    valid = windows.valid[chosen]
    blocks = (len(chosen), rows, kernel[0], columns, kernel[1])
    cells = windows.cells[chosen].masked_fill(~valid[..., None], -torch.inf)
    pooled = cells.view(*blocks, cells.shape[-1]).amax((2, 4))
    is_token = valid.view(blocks).any(4).any(2)
    tokens = pooled[is_token]
    which, row, column = is_token.nonzero(as_tuple=True)
    source = chosen[which]
    if factor is not None:
        tokens = tokens * factor[source, None].to(tokens.dtype)

    top, left = windows.row[source] + row * kernel[0], windows.column[source] + column * kernel[1]
    view = windows.view[source]
    footprint = torch.stack([view, top, top + kernel[0], left, left + kernel[1]], dim=1)
    order = torch.stack([windows.row[source] // window, windows.column[source] // window, row * columns + column], 1)
    return _Group(tokens, windows.image[source], view, order, footprint, is_newline=False)


def _raw_global_group(features: Tensor, grids: list[ImageGrid]) -> _Group:
    """The cells of the global views as they are, in raster order."""
    g = grids[0].cells_per_side
    first_tiles = _first_tiles(grids, features.device)
    tokens = features[first_tiles].flatten(0, 1)
    image = torch.arange(len(grids), device=features.device).repeat_interleave(g * g)
    cell = torch.arange(g * g, device=features.device).repeat(len(grids))
    row, column, zero = cell // g, cell % g, torch.zeros_like(cell)
    footprint = torch.stack([zero + GLOBAL_VIEW, row, row + 1, column, column + 1], dim=1)
    return _Group(tokens, image, zero + GLOBAL_VIEW, torch.stack([row, column, zero], 1), footprint, is_newline=False)


def _newline_group(newline: Tensor, grids: list[ImageGrid], window: int, after_empty_rows: bool) -> _Group:
    """One newline behind each row of local windows with a valid cell.

    ``after_empty_rows``: also behind rows of a crop without width, which LLaVA-NeXT does (an image 70 times as high as
    wide).
    """
    spans: list[tuple[int, int, int]] = []  # of an image: first row with a window, number of such rows, columns
    for grid in grids:
        top, bottom, left, right = grid.crop
        has_rows = top < bottom and (left < right or after_empty_rows)
        first, behind_last = (top // window, math.ceil(bottom / window)) if has_rows else (0, 0)
        spans.append((first, behind_last - first, grid.tile_columns * grid.cells_per_side // window))
    first_row, counts, columns = torch.tensor(spans, device=newline.device).unbind(1)
    image = torch.arange(len(grids), device=newline.device).repeat_interleave(counts)
    row = torch.arange(len(image), device=newline.device) - (counts.cumsum(0) - counts - first_row)[image]
    column = columns[image]  # behind the last column of windows
    zero = torch.zeros_like(row)
    footprint = torch.stack([zero + LOCAL_MAP, row * window, row * window, column * window, column * window], dim=1)
    order = torch.stack([row, column, zero], dim=1)
    return _Group(newline.expand(len(image), -1), image, zero + LOCAL_MAP, order, footprint, is_newline=True)


def _in_reading_order(groups: list[_Group], num_images: int, windows: Windows) -> VisualTokens:
    """Put the groups together, sorted by image, view, row of windows, column of windows and cell."""
    none = groups[0].order.new_zeros(1, 3)  # images may be left without a token
    largest = torch.cat([none, *(group.order for group in groups)]).amax(0)
    index = torch.cat([_order_key(group, largest) for group in groups]).argsort()
    image = torch.cat([group.image for group in groups])[index]
    flags = [torch.full_like(group.image, group.is_newline, dtype=torch.bool) for group in groups]
    return VisualTokens(
        tokens=torch.cat([group.tokens for group in groups])[index],
        image=image,
        is_newline=torch.cat(flags)[index],
        footprint=torch.cat([group.footprint for group in groups])[index],
        counts=torch.bincount(image, minlength=num_images),
        windows=windows,
    )


def _first_tiles(grids: list[ImageGrid], device: torch.device) -> Tensor:
    """int64 [I], the tile that is each image's global view."""
    counts = torch.tensor([grid.num_tiles for grid in grids], device=device)
    return counts.cumsum(0) - counts


def baseline_tokens(features: Tensor, newline: Tensor, grids: list[ImageGrid]) -> VisualTokens:
    """LLaVA-NeXT's tokens: every cell of the global view, every cell of the cropped map, a newline after each row.

    That is windows of one cell with one scale. Arguments as in :meth:`VisionSampler.forward`.
    """
    windows = cut_windows(features, grids, 1, (GLOBAL_VIEW, LOCAL_MAP))
    chosen = windows.has_cells.nonzero()[:, 0]
    newlines = _newline_group(newline, grids, 1, after_empty_rows=True)
    return _in_reading_order([_pooled_group(windows, chosen, (1, 1), None), newlines], len(grids), windows)


class VisionSampler(nn.Module):
    """Chooses a pooling scale for every window of the projected features."""

    def __init__(self, settings: dict[str, Any], cells_per_side: int):
        super().__init__()
        self.window: int = settings["window"]
        self.kernels = [scale_kernel(scale) for scale in settings["scales"]]
        self.score_pooling: str = settings["score_pooling"]
        self.gate: str = settings["gate"]
        self.global_view: str = settings["global_view"]
        self.selector = nn.Linear(cells_per_side**2, len(self.kernels))

    def _probabilities(self, windows: Windows, features: Tensor, grids: list[ImageGrid]) -> tuple[Tensor, Tensor]:
        """float32 logits and probabilities [W, S] (Eq. 1 and 2), all in float32."""
        mask = windows.valid[..., None]
        if self.score_pooling == "max":
            # A window without a valid cell is never read; zero keeps its score finite.
            pooled = windows.cells.masked_fill(~mask, -torch.inf).amax((1, 2)).float()
            pooled = pooled.masked_fill(~windows.has_cells[:, None], 0.0)
        else:
            total = (windows.cells.float() * mask).sum((1, 2))
            pooled = total / windows.valid.sum((1, 2)).clamp(min=1)[:, None]
        # One product per tile: each tile's windows with the global view of its image.
        per_tile = (grids[0].cells_per_side // self.window) ** 2
        image_of_tile = windows.image[::per_tile]
        context = features[_first_tiles(grids, features.device)].float()[image_of_tile]
        score = pooled.view(-1, per_tile, pooled.shape[-1]) @ context.transpose(1, 2) / math.sqrt(pooled.shape[-1])
        weight, bias = self.selector.weight.float(), self.selector.bias.float()
        logits = nn.functional.linear(score.flatten(0, 1), weight, bias)
        return logits, logits.softmax(-1)

    def _factor(self, probability: Tensor) -> Tensor | None:
        """What the chosen tokens are multiplied by; None for one."""
        if self.gate == "switch" or (self.gate == "paper" and self.training):
            return probability
        if self.gate == "ste" and self.training:
            return probability / probability.detach()
        return None

    def forward(self, features: Tensor, newline: Tensor, grids: list[ImageGrid]) -> VisualTokens:
        """Sample all images at once.

        Args:
            features: [t, g*g, C], for each image its global view and then its tiles in row order, after the projector.
            newline: [C], the embedding of a newline.
            grids: the grid of each image.
        """
        views = (GLOBAL_VIEW, LOCAL_MAP) if self.global_view == "compress" else (LOCAL_MAP,)
        windows = cut_windows(features, grids, self.window, views)
        logits, probabilities = self._probabilities(windows, features, grids)
        best = logits.argmax(-1)  # the first of equals, which is the finest
        factor = self._factor(probabilities.gather(1, best[:, None])[:, 0])
        windows.choice = torch.where(windows.has_cells, best, DROPPED)

        groups = [_newline_group(newline, grids, self.window, after_empty_rows=False)]
        if self.global_view == "keep":
            groups.append(_raw_global_group(features, grids))
        for scale, kernel in enumerate(self.kernels):
            if kernel is not None:
                chosen = (windows.choice == scale).nonzero()[:, 0]
                groups.append(_pooled_group(windows, chosen, kernel, factor))
        return _in_reading_order(groups, len(grids), windows)
