"""Vision-guided sampling: each window of cells becomes as many tokens as its likeness to the whole image asks for.

FocusLLaVA, Eq. 1-5 and 10. Shapes: I images, t tiles of all images, g cells along a tile side, w window side, W
windows, S scales, C hidden size, n tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .cell_windows import DROPPED, GLOBAL_VIEW, LOCAL_MAP, Windows, cut_windows, first_tiles, max_of_cells
from .configuration_focus_llava import scale_kernel
from .image_geometry import ImageGrid


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


def _order_key(group: _Group, largest: Tensor) -> Tensor:
    """int64 [k], one number that sorts tokens by image, view and their order in the view."""
    key = group.image * 2 + group.view
    for column in range(3):
        key = key * (largest[column] + 1) + group.order[:, column]
    return key


def _first_argmax(logits: Tensor) -> Tensor:
    """int64 [W], the largest of [W, S], the first (finest) of equals; ``torch.argmax`` leaves ties open.

    NaN equals nothing and gives the last.
    """
    before = (logits == logits.amax(-1, keepdim=True)).int().cumsum(-1).eq(0).sum(-1)
    return before.clamp(max=logits.shape[-1] - 1)


def _pooled_group(windows: Windows, chosen: Tensor, kernel: tuple[int, int], factor: Tensor | None) -> _Group:
    """Max-pool the chosen windows; pooled cells without a valid cell are left out."""
    window = windows.valid.shape[1]
    rows, columns = window // kernel[0], window // kernel[1]
    valid = windows.valid[chosen]
    blocks = (len(chosen), rows, kernel[0], columns, kernel[1])
    pooled = max_of_cells(windows.cells[chosen].view(*blocks, windows.cells.shape[-1]))
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
    tokens = features[first_tiles(grids, features.device)].flatten(0, 1)
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


def baseline_tokens(features: Tensor, newline: Tensor, grids: list[ImageGrid]) -> VisualTokens:
    """LLaVA-NeXT's tokens: every cell of the global view, every cell of the cropped map, a newline after each row.

    That is windows of one cell with one scale. Arguments as in :meth:`VisionSampler.forward`.
    """
    windows = cut_windows(features, grids, 1, (GLOBAL_VIEW, LOCAL_MAP))
    chosen = windows.has_cells.nonzero()[:, 0]
    newlines = _newline_group(newline, grids, 1, after_empty_rows=True)
    return _in_reading_order([_pooled_group(windows, chosen, (1, 1), None), newlines], len(grids), windows)


def _image_means(score: Tensor, windows: Windows) -> Tensor:
    """float32 [I, g*g], mean score of each image's windows that have a valid cell, from [W, g*g].

    A product, whose sums have a fixed order; those of atomic additions have none.
    """
    images = torch.arange(int(windows.image.max()) + 1, device=score.device)
    member = ((windows.image == images[:, None]) & windows.has_cells).to(score.dtype)
    return member @ score / member.sum(1).clamp(min=1)[:, None]


class ScaleSelector(nn.Linear):
    """The sampler's weights, read nowhere else: accelerate may load them only while this module is called."""

    def forward(self, score: Tensor, offered: list[int]) -> Tensor:  # type: ignore[override]
        """float32 logits [W, S] of the offered scales, from float32 scores [W, g*g]."""
        return nn.functional.linear(score, self.weight[offered].float(), self.bias[offered].float())


class VisionSampler(nn.Module):
    """Chooses a pooling scale for every window of the projected features."""

    def __init__(self, settings: dict[str, Any], cells_per_side: int):
        super().__init__()
        self.window: int = settings["window"]
        self.scales: list[str] = settings["scales"]
        self.score_pooling: str = settings["score_pooling"]
        self.score_scale: float | None = settings["score_scale"]
        self.center_scores: bool = settings["center_scores"]
        self.gate: str = settings["gate"]
        self.global_view: str = settings["global_view"]
        self.selector = ScaleSelector(cells_per_side**2, len(self.scales))

    def _probabilities(
        self, windows: Windows, features: Tensor, grids: list[ImageGrid], offered: list[int]
    ) -> tuple[Tensor, Tensor]:
        """float32 logits and probabilities [W, S] of the offered scales (Eq. 1 and 2), all in float32."""
        if self.score_pooling == "max":
            pooled = max_of_cells(windows.cells[:, None, :, None])[:, 0, 0].float()
            # A window without a valid cell is never read; zero keeps its score finite.
            pooled = pooled.masked_fill(~windows.has_cells[:, None], 0.0)
        else:
            total = windows.cells.float().masked_fill(~windows.valid[..., None], 0.0).sum((1, 2))
            pooled = total / windows.valid.sum((1, 2)).clamp(min=1)[:, None]
        # One product per tile: each tile's windows with the global view of its image.
        per_tile = (grids[0].cells_per_side // self.window) ** 2
        image_of_tile = windows.image[::per_tile]
        context = features[first_tiles(grids, features.device)].float()[image_of_tile]
        scale = 1 / math.sqrt(pooled.shape[-1]) if self.score_scale is None else self.score_scale
        score = (pooled.view(-1, per_tile, pooled.shape[-1]) @ context.transpose(1, 2) * scale).flatten(0, 1)
        if self.center_scores:
            score = score - _image_means(score, windows)[windows.image]
        logits = self.selector(score, offered)
        return logits, logits.softmax(-1)

    def _factor(self, probability: Tensor) -> Tensor | None:
        """What the chosen tokens are multiplied by; None for one."""
        if self.gate == "switch" or (self.gate == "paper" and self.training):
            return probability
        if self.gate == "ste" and self.training:
            return probability / probability.detach()
        return None

    def forward(
        self, features: Tensor, newline: Tensor, grids: list[ImageGrid], scales: Sequence[str] | None = None
    ) -> VisualTokens:
        """Sample all images at once.

        Args:
            features: [t, g*g, C], for each image its global view and then its tiles in row order, after the projector.
            newline: [C], the embedding of a newline.
            grids: the grid of each image.
            scales: those that a window may choose; the selector then answers for them alone. None: all that it was
                trained with.
        """
        offered = [i for i, scale in enumerate(self.scales) if scales is None or scale in scales]
        views = (GLOBAL_VIEW, LOCAL_MAP) if self.global_view == "compress" else (LOCAL_MAP,)
        windows = cut_windows(features, grids, self.window, views)
        logits, probabilities = self._probabilities(windows, features, grids, offered)
        best = _first_argmax(logits)
        factor = self._factor(probabilities.gather(1, best[:, None])[:, 0])
        windows.choice = torch.where(windows.has_cells, torch.tensor(offered, device=best.device)[best], DROPPED)

        groups = [_newline_group(newline, grids, self.window, after_empty_rows=False)]
        if self.global_view == "keep":
            groups.append(_raw_global_group(features, grids))
        for scale in offered:
            kernel = scale_kernel(self.scales[scale])
            if kernel is not None:
                chosen = (windows.choice == scale).nonzero()[:, 0]
                groups.append(_pooled_group(windows, chosen, kernel, factor))
        return _in_reading_order(groups, len(grids), windows)
