"""Where the cells of an image lie: tiles, map and crop, from its size alone.

Shapes: g cells along a tile side. Cells are what the vision tower makes of patches, one feature vector each.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

Crop = tuple[int, int, int, int]


@dataclass(frozen=True)
class ImageGrid:
    """The local tiles of one image, put together into one map of cells."""

    tile_rows: int
    tile_columns: int
    crop: Crop
    """Cells that show the image rather than padding, as half-open bounds (top, bottom, left, right)."""
    cells_per_side: int
    """g."""

    @property
    def num_tiles(self) -> int:
        """Tiles of the image, its global view included."""
        return self.tile_rows * self.tile_columns + 1

    @property
    def baseline_tokens(self) -> int:
        """Placeholders the processor writes: the global view and the cropped map with a newline after each row."""
        top, bottom, left, right = self.crop
        return self.cells_per_side**2 + (bottom - top) * (right - left + 1)


def _unpadded_crop(image_size: tuple[int, int], rows: int, columns: int) -> Crop:
    """LLaVA-NeXT's crop of a rows x columns map that holds the image in its middle, in the same arithmetic."""
    height, width = image_size
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return padding, rows - padding, 0, columns
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return 0, rows, padding, columns - padding


def image_grid(
    image_size: tuple[int, int], grid_pinpoints: list[list[int]], tile_size: int, cells_per_side: int
) -> ImageGrid:
    """The grid of an image.

    Args:
        image_size: height and width of the original image in pixels.
        grid_pinpoints: canvas resolutions as (height, width) in pixels, in the order in which ties are decided.
        tile_size: side of a tile in pixels.
        cells_per_side: g.
    """
    height, width = select_best_resolution(image_size, grid_pinpoints)
    tile_rows, tile_columns = height // tile_size, width // tile_size
    crop = _unpadded_crop(image_size, tile_rows * cells_per_side, tile_columns * cells_per_side)
    return ImageGrid(tile_rows, tile_columns, crop, cells_per_side)


def tiles_of_images(pixel_values: Tensor, grids: list[ImageGrid]) -> list[Tensor]:
    """The tiles [tiles, 3, P, P] of each image, without those the processor padded with.

    Args:
        pixel_values: [I, most tiles, 3, P, P], or [tiles, 3, P, P] of all images.
        grids: the grid of each image.

    Raises:
        ValueError: if there are not as many tiles as the grids say.
    """
    counts = [grid.num_tiles for grid in grids]
    shape = tuple(pixel_values.shape)
    if pixel_values.dim() == 5 and shape[0] == len(grids) and shape[1] >= max(counts):
        return [tiles[:count] for tiles, count in zip(pixel_values, counts, strict=True)]
    if pixel_values.dim() == 4 and shape[0] == sum(counts):
        return list(pixel_values.split(counts))
    raise ValueError(f"pixel_values has shape {shape}, but by image_sizes the images have {counts} tiles")
