"""LLaVA-NeXT's anyres scheme: from the size of an image to tiles, cells and a count of visual tokens.

Shapes: H, W pixels of an image; P tile side in pixels; g = P / patch_size cells along a tile; t tiles, 1 + rows * cols
of each image. The choices equal those of ``transformers``' LlavaNextImageProcessor and
LlavaNextModel.pack_image_features.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.config import ImageGeometry

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Channel means that the CLIP vision towers were trained with (red, green, blue; pixel values in [0, 1])."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel standard deviations that go with ``CLIP_MEAN``."""


@dataclass(frozen=True)
class TilePlan:
    """Where the pixels of one image go; every length is in pixels, ``rows`` and ``cols`` count tiles."""

    resized_height: int
    resized_width: int
    canvas_height: int
    canvas_width: int
    pad_top: int
    pad_left: int
    rows: int
    cols: int


@dataclass(frozen=True)
class CellCrop:
    """The cells of the local map that show the image: rows ``top:bottom`` and columns ``left:right``."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        """Rows of cells, which is also the number of newlines of the baseline."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns of cells."""
        return self.right - self.left

    @property
    def is_empty(self) -> bool:
        """Whether no cell shows the image, which is too elongated for that."""
        return self.height <= 0 or self.width <= 0


def hf_grid_pinpoints(geometry: ImageGeometry) -> list[list[int]]:
    """The pinpoints as ``transformers`` reads them: (height, width), in the same order.

    LLaVA writes them as (width, height). The two lists hold the same canvases, but the order decides ties (a square
    image fits a wide and a tall canvas equally well), so a release has to carry the list in this form.
    """
    return [[height, width] for width, height in geometry.grid_pinpoints]


def plan_tiles(height: int, width: int, geometry: ImageGeometry) -> TilePlan:
    """Choose the canvas for an image of ``height`` x ``width`` pixels and place the image on it.

    The canvas is the one that keeps most of the image's pixels, then the one that wastes least area, then the first.

    Raises:
        ValueError: the image is too elongated to keep a pixel on any canvas.
    """
    tile = geometry.tile_size
    best: tuple[int, int] | None = None
    best_effective, least_waste = 0, math.inf
    for canvas_width, canvas_height in geometry.grid_pinpoints:
        scale = min(canvas_width / width, canvas_height / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        waste = canvas_width * canvas_height - effective
        if effective > best_effective or (effective == best_effective and waste < least_waste):
            best, best_effective, least_waste = (canvas_height, canvas_width), effective, waste
    if best is None or best_effective == 0:
        canvases = geometry.grid_pinpoints
        raise ValueError(f"an image of {width}x{height} pixels is too elongated for the canvases {canvases}")

    canvas_height, canvas_width = best
    scale_height, scale_width = canvas_height / height, canvas_width / width
    if scale_width < scale_height:
        resized_height, resized_width = min(math.ceil(height * scale_width), canvas_height), canvas_width
    else:
        resized_height, resized_width = canvas_height, min(math.ceil(width * scale_height), canvas_width)
    assert canvas_height % tile == 0 and canvas_width % tile == 0, "pinpoints are multiples of the tile size"
    return TilePlan(
        resized_height=resized_height,
        resized_width=resized_width,
        canvas_height=canvas_height,
        canvas_width=canvas_width,
        pad_top=(canvas_height - resized_height) // 2,
        pad_left=(canvas_width - resized_width) // 2,
        rows=canvas_height // tile,
        cols=canvas_width // tile,
    )


def valid_cells(height: int, width: int, plan: TilePlan, geometry: ImageGeometry) -> CellCrop:
    """The crop that removes the padding from the local map of ``rows * g`` by ``cols * g`` cells.

    ``transformers``' ``unpad_image`` in cells: the padding is floored, so a border row may hold a few padded pixels. A
    very elongated image may be left with no cell at all; it is then seen through its global view only.
    """
    map_height, map_width = plan.rows * geometry.cells_per_side, plan.cols * geometry.cells_per_side
    if width / height > map_width / map_height:
        # Rounding to 7 places before truncating keeps 35.99999999 at 36; it is part of the definition.
        used = int(round(height * (map_width / width), 7))
        padding = (map_height - used) // 2
        return CellCrop(top=padding, bottom=map_height - padding, left=0, right=map_width)
    used = int(round(width * (map_height / height), 7))
    padding = (map_width - used) // 2
    return CellCrop(top=0, bottom=map_height, left=padding, right=map_width - padding)


def visual_token_count(height: int, width: int, geometry: ImageGeometry) -> int:
    """Visual tokens of an image of ``height`` x ``width`` pixels before any sampling, newlines included.

    The one place where tokens are counted: global view, valid cells, and a newline after each row of cells.
    """
    crop = valid_cells(height, width, plan_tiles(height, width, geometry), geometry)
    return geometry.cells_per_side**2 + crop.height * (crop.width + 1)


def make_tiles(rgb: Tensor, plan: TilePlan, geometry: ImageGeometry) -> Tensor:
    """Resize and cut an image.

    Args:
        rgb: uint8 [3, H, W].
        plan: what ``plan_tiles`` says for H and W.
        geometry: gives the tile side P.

    Returns:
        uint8 [1 + rows * cols, 3, P, P]: the whole image squashed to one tile, then the tiles of the canvas in row
        order. Pixels of the canvas that the image does not reach are 0 (black).
    """
    assert rgb.dtype == torch.uint8 and rgb.ndim == 3 and rgb.shape[0] == 3, "uint8 [3, H, W]"
    tile = geometry.tile_size
    return assemble_tiles(
        _resize(rgb, tile, tile), _resize(rgb, plan.resized_height, plan.resized_width), plan, geometry
    )


def assemble_tiles(overview: Tensor, resized: Tensor, plan: TilePlan, geometry: ImageGeometry) -> Tensor:
    """Put an image that is resized already on its canvas and cut it; the result is that of ``make_tiles``.

    Args:
        overview: uint8 [3, P, P], the whole image squashed to one tile.
        resized: uint8 [3, resized_height, resized_width].
        plan: of the image.
        geometry: gives the tile side P.
    """
    tile = geometry.tile_size
    tiles = resized.new_zeros(1 + plan.rows * plan.cols, 3, tile, tile)
    tiles[0] = overview
    for number in range(plan.rows * plan.cols):
        row, col = divmod(number, plan.cols)
        # Where this tile begins in the resized image; negative in the padding.
        y, x = row * tile - plan.pad_top, col * tile - plan.pad_left
        part = resized[:, max(y, 0) : max(y + tile, 0), max(x, 0) : max(x + tile, 0)]
        top, left = max(-y, 0), max(-x, 0)
        tiles[1 + number, :, top : top + part.shape[1], left : left + part.shape[2]] = part
    return tiles


def _resize(rgb: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialias on uint8 [3, H, W]: Pillow's filter, to within rounding."""
    return F.interpolate(rgb[None], size=(height, width), mode="bicubic", antialias=True)[0]


def normalise(tiles: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [t, 3, P, P] to the vision tower's input in ``dtype``, on the tiles' device (computed in float32)."""
    assert tiles.dtype == torch.uint8, "levels of 0 to 255"
    mean = torch.tensor(CLIP_MEAN, device=tiles.device).view(3, 1, 1)
    std = torch.tensor(CLIP_STD, device=tiles.device).view(3, 1, 1)
    # (x / 255 - mean) / std in one step less, and in place: on a CPU, fresh memory takes longer than the arithmetic.
    return tiles.float().sub_(255 * mean).mul_(1 / (255 * std)).to(dtype)
