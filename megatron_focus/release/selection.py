"""What the samplers did to each image, for pictures and statistics."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .cell_windows import DROPPED, GLOBAL_VIEW, LOCAL_MAP, Windows
from .image_geometry import Crop, ImageGrid
from .vision_sampling import VisualTokens


@dataclass(kw_only=True)
class ImageSelection:
    """The samplers' choices for one image of n visual tokens."""

    row: int
    """The row of the batch that the image belongs to."""
    image_size: tuple[int, int]
    """Height and width of the image in pixels."""
    cells_per_side: int
    """Cells along a tile side."""
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
    drop_layer: int | None
    """The layer, counted from 0, before which the others were dropped; None where the text-guided sampler is off."""
    baseline_tokens: int
    """Tokens that the image has in LLaVA-NeXT."""

    @property
    def num_tokens(self) -> int:
        """n, tokens that the first layer reads, newlines included."""
        return len(self.kept)

    @property
    def num_kept(self) -> int:
        """Tokens that the last layer reads, newlines included."""
        return int(self.kept.sum())

    def pixel_boxes(self) -> Tensor:
        """float32 [n, 4], left, top, right and bottom of each token in the image's pixels; NaN for newlines.

        The global view is the image squashed into a square; among the tiles it is as large as they allow and lies in
        their middle. What the padding around it covers is cut off.
        """
        height, width = self.image_size
        rows, columns = (side * self.window for side in self.local_scales.shape)
        scale = min(columns / width, rows / height)  # cells per pixel
        per_view = {
            GLOBAL_VIEW: (self.cells_per_side / width, self.cells_per_side / height, 0.0, 0.0),
            LOCAL_MAP: (scale, scale, (columns - width * scale) / 2, (rows - height * scale) / 2),
        }
        view, top, bottom, left, right = self.footprint.unbind(1)
        table = torch.tensor([per_view[GLOBAL_VIEW], per_view[LOCAL_MAP]], device=view.device)
        across, down, first_column, first_row = table[view].unbind(1)
        x = ((torch.stack([left, right]) - first_column) / across).clamp(0, width)
        y = ((torch.stack([top, bottom]) - first_row) / down).clamp(0, height)
        boxes = torch.stack([x[0], y[0], x[1], y[1]], dim=1)
        return boxes.masked_fill(self.is_newline[:, None], torch.nan)


def _scale_map(windows: Windows, image: int, view: int, window: int, rows: int, columns: int) -> Tensor:
    """Scales of one view's windows as a map."""
    mine = (windows.image == image) & (windows.view == view)
    scales = windows.choice.new_full((rows, columns), DROPPED)
    scales[windows.row[mine] // window, windows.column[mine] // window] = windows.choice[mine]
    return scales


def image_selections(
    visual: VisualTokens,
    grids: list[ImageGrid],
    image_sizes: list[tuple[int, int]],
    rows: list[list[int]],
    scales: list[str],
    importance: Tensor | None,
    tokens_left: Tensor,
    drop_layer: int | None,
) -> list[ImageSelection]:
    """Gather the choices image by image.

    Args:
        visual: the tokens of all images, n of them.
        grids: the grid of each image.
        image_sizes: height and width of each image in pixels.
        rows: the images of each row of the batch.
        scales: names of the scales.
        importance: float32 [n], NaN where there is none; None if nothing was scored.
        tokens_left: int64, any shape, indices of the visual tokens behind the last layer; -1 for others.
        drop_layer: where tokens were dropped.
    """
    device = visual.image.device
    kept = torch.zeros_like(visual.is_newline)
    kept[tokens_left[tokens_left >= 0].to(device)] = True
    if importance is None:
        importance = torch.full_like(visual.image, torch.nan, dtype=torch.float32)
    importance = importance.to(device)
    selections = []
    windows, window = visual.windows, visual.windows.valid.shape[1]
    sampled_views = set(windows.view.unique().tolist())
    row_of_image = {image: row for row, images in enumerate(rows) for image in images}
    for image, grid in enumerate(grids):
        mine = visual.image == image
        per_side = grid.cells_per_side // window
        scores = importance[mine]
        whole = None
        if GLOBAL_VIEW in sampled_views:
            whole = _scale_map(windows, image, GLOBAL_VIEW, window, per_side, per_side)
        map_rows, map_columns = grid.tile_rows * per_side, grid.tile_columns * per_side
        selections.append(
            ImageSelection(
                row=row_of_image[image],
                image_size=image_sizes[image],
                cells_per_side=grid.cells_per_side,
                scales=scales,
                window=window,
                global_scales=whole,
                local_scales=_scale_map(windows, image, LOCAL_MAP, window, map_rows, map_columns),
                crop=grid.crop,
                footprint=visual.footprint[mine],
                is_newline=visual.is_newline[mine],
                importance=None if bool(torch.isnan(scores).all()) else scores,
                kept=kept[mine],
                drop_layer=drop_layer,
                baseline_tokens=grid.baseline_tokens,
            )
        )
    return selections
