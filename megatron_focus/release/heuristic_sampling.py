"""Heuristic sampling: the cells most similar to the global view stay, at a fixed share and without any parameter.

The baseline of FocusLLaVA's supplement, section 6, as it was trained: an image's cells (those inside the picture, and
the global view's where it is sampled) are scored by their mean inner product with the cells of the global view, and the
ceil(share * N) best stay, the first of equals. Newlines are neither counted nor dropped.

Shapes: t tiles of all images, g cells along a tile side, C hidden size, e tokens that are there before any is dropped.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cell_windows import GLOBAL_VIEW, LOCAL_MAP, Windows, cut_windows, first_tiles
from .image_geometry import ImageGrid
from .vision_sampling import VisualTokens

_PARTS = 1_000_000
"""Shares are read in parts per million, as in training, so that counting is exact."""


@dataclass
class _Entries:
    """Tokens that could enter the sequence, int64 [e] each."""

    place: Tensor
    """[5, e]: image, view, row of windows, column of windows, cell of the window. Its order is the reading order."""
    source: Tensor
    """Which cell of the flattened features; t*g*g for a newline."""
    corner: Tensor
    """[2, e], row and column in the view."""
    candidate: Tensor
    """bool, cells that are scored."""


def heuristic_tokens(
    features: Tensor, newline: Tensor, grids: list[ImageGrid], settings: dict[str, Any]
) -> VisualTokens:
    """Sample all images at once.

    Args:
        features: [t, g*g, C], for each image its global view and then its tiles in row order, after the projector.
        newline: [C], the embedding of a newline.
        grids: the grid of each image.
        settings: the configuration's ``vision_sampler``; ``window``, ``global_view`` and ``heuristic_keep`` are read.
    """
    mode, window = settings["global_view"], settings["window"]
    views = (GLOBAL_VIEW, LOCAL_MAP) if mode == "compress" else (LOCAL_MAP,)
    windows = cut_windows(features, grids, window, views)
    sampled = _cells(windows, grids, candidate=True)
    groups = [sampled, _newlines(sampled, grids, window, newline_source=features[..., 0].numel())]
    if mode == "keep":
        groups.append(_cells(cut_windows(features, grids, 1, (GLOBAL_VIEW,)), grids, candidate=False))
    entries = _in_reading_order(groups)

    candidate = entries.candidate.nonzero()[:, 0]
    scores = _scores(features, grids).flatten()[entries.source[candidate]]
    stays = ~entries.candidate
    stays[candidate[_top_share(scores, entries.place[0, candidate], len(grids), settings["heuristic_keep"])]] = True
    image, view = entries.place[:2, stays]
    (top, left), source = entries.corner[:, stays], entries.source[stays]
    is_newline = source == features[..., 0].numel()
    side = (~is_newline).long()
    return VisualTokens(
        tokens=torch.cat([features.flatten(0, 1), newline[None].to(features.dtype)])[source],
        image=image,
        is_newline=is_newline,
        footprint=torch.stack([view, top, top + side, left, left + side], dim=1),
        counts=torch.bincount(image, minlength=len(grids)),
        windows=windows,
    )


def _cells(windows: Windows, grids: list[ImageGrid], candidate: bool) -> _Entries:
    """The valid cells of all windows."""
    g, window = grids[0].cells_per_side, windows.valid.shape[1]
    which, down, across = windows.valid.nonzero(as_tuple=True)
    row, column = windows.row[which] + down, windows.column[which] + across
    place = [windows.image[which], windows.view[which], row // window, column // window, down * window + across]
    return _Entries(
        place=torch.stack(place),
        source=(windows.tile[which] * g + row % g) * g + column % g,
        corner=torch.stack([row, column]),
        candidate=torch.full_like(which, candidate, dtype=torch.bool),
    )


def _newlines(sampled: _Entries, grids: list[ImageGrid], window: int, newline_source: int) -> _Entries:
    """One behind each row of local windows with a valid cell, whether or not one of its cells stays."""
    image, view, row = sampled.place[:3]
    image, row = torch.stack([image, row])[:, view == LOCAL_MAP].unique(dim=1)
    columns = torch.tensor([grid.tile_columns * grid.cells_per_side for grid in grids], device=row.device)[image]
    return _Entries(
        place=torch.stack([image, torch.full_like(row, LOCAL_MAP), row, columns // window, torch.zeros_like(row)]),
        source=torch.full_like(row, newline_source),
        corner=torch.stack([row * window, columns]),
        candidate=torch.zeros_like(row, dtype=torch.bool),
    )


def _in_reading_order(groups: list[_Entries]) -> _Entries:
    """All entries, sorted by their place."""
    place = torch.cat([group.place for group in groups], dim=1)
    key = place[0]
    for column in place[1:]:
        key = key * (column.max() + 1 if len(column) else 1) + column
    index = key.argsort()
    return _Entries(
        place=place[:, index],
        source=torch.cat([group.source for group in groups])[index],
        corner=torch.cat([group.corner for group in groups], dim=1)[:, index],
        candidate=torch.cat([group.candidate for group in groups])[index],
    )


@torch.no_grad()
def _scores(features: Tensor, grids: list[ImageGrid]) -> Tensor:
    """float32 [t, g*g], mean inner product of every cell with the cells of its image's global view."""
    tiles = torch.tensor([grid.num_tiles for grid in grids], device=features.device)
    context = features[first_tiles(grids, features.device).repeat_interleave(tiles)].mean(1, dtype=torch.float32)
    return torch.bmm(features.float(), context[:, :, None])[..., 0]


def _top_share(scores: Tensor, image: Tensor, num_images: int, share: float) -> Tensor:
    """Indices of the ceil(share * N) largest of each image; ``image`` [n] rises, and equals stay in reading order."""
    count = torch.bincount(image, minlength=num_images)
    keep = (count * round(share * _PARTS) + _PARTS - 1) // _PARTS
    best = scores.argsort(descending=True, stable=True)
    best = best[image[best].argsort(stable=True)]
    rank = torch.arange(len(best), device=best.device) - (count.cumsum(0) - count)[image[best]]
    return best[rank < keep[image[best]]]
