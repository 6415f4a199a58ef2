"""What the samplers did to each image, for pictures and statistics."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .image_geometry import Crop, ImageGrid
from .vision_sampling import DROPPED, GLOBAL_VIEW, LOCAL_MAP, VisualTokens, Windows


@dataclass
class ImageSelection:
    """The samplers' choices for one image of n visual tokens."""

    scales: list[str]
    """Names of the scales that the maps below count from 0."""
    window: int
    """Side of a window in cells."""
    global_scales: Tensor | None
    """int64 [rows, columns], scale of each window of the global view; None where it is not sampled."""
    local_scales: Tensor
    """int64 [rows, columns], scale of each window of the local map; -1 for windows outside the crop."""
    crop: Crop
    """Cells of the local map that show the image: top, bottom, left, right, half-open."""
    footprint: Tensor
    """int64 [n, 5], view of each token (0 global, 1 local) and its cells: top, bottom, left, right, half-open."""
    is_newline: Tensor
    """bool [n]."""
    importance: Tensor | None
    """float32 [n], score of each token for the instruction (NaN for newlines); None where no instruction asked."""
    kept: Tensor
    """bool [n], tokens that the layers behind the drop still see."""


def _scale_map(windows: Windows, image: int, view: int, window: int, rows: int, columns: int) -> Tensor:
    """Scales of one view's windows as a map."""
    mine = (windows.image == image) & (windows.view == view)
    scales = windows.choice.new_full((rows, columns), DROPPED)
    scales[windows.row[mine] // window, windows.column[mine] // window] = windows.choice[mine]
    return scales


def image_selections(
    visual: VisualTokens,
    grids: list[ImageGrid],
    scales: list[str],
    window: int,
    importance: Tensor | None,
    tokens_left: Tensor,
) -> list[ImageSelection]:
    """Gather the choices image by image.

    Args:
        visual: the tokens of all images, n of them.
        grids: the grid of each image.
        scales: names of the scales.
        window: side of a window in cells.
        importance: float32 [n], NaN where there is none; None if nothing was scored.
        tokens_left: int64, any shape, indices of the visual tokens behind the last layer; -1 for others.
    """
    kept = torch.zeros_like(visual.is_newline)
    kept[tokens_left[tokens_left >= 0]] = True
    if importance is None:
        importance = torch.full_like(visual.image, torch.nan, dtype=torch.float32)
    selections = []
    sampled_views = set(visual.windows.view.unique().tolist())
    for image, grid in enumerate(grids):
        mine = visual.image == image
        per_side = grid.cells_per_side // window
        scores = importance[mine]
        whole = None
        if GLOBAL_VIEW in sampled_views:
            whole = _scale_map(visual.windows, image, GLOBAL_VIEW, window, per_side, per_side)
        rows, columns = grid.tile_rows * per_side, grid.tile_columns * per_side
        selections.append(
            ImageSelection(
                scales=scales,
                window=window,
                global_scales=whole,
                local_scales=_scale_map(visual.windows, image, LOCAL_MAP, window, rows, columns),
                crop=grid.crop,
                footprint=visual.footprint[mine],
                is_newline=visual.is_newline[mine],
                importance=None if bool(torch.isnan(scores).all()) else scores,
                kept=kept[mine],
            )
        )
    return selections
