"""An image as the vision tower meets it: on its canvas, with the borders of the tiles and the padding."""

from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from data_pipeline.anyres import TilePlan, visual_token_count
from data_pipeline.config import ImageGeometry
from data_pipeline.decoding.cpu import decode, plan_image
from data_pipeline.decoding.probe import probe

PADDING, STRIPE, BORDER, HALO = (238, 240, 243), (205, 210, 217), (214, 0, 110), (255, 255, 255)
_STRIPES = 20
"""Pixels between the stripes of the padding."""


@dataclass(frozen=True, kw_only=True)
class CanvasView:
    """An image on its canvas, and what is said of it."""

    picture: Image.Image
    """The canvas, scaled, with the tiles drawn."""
    format: str
    height: int
    """Of the image, in pixels."""
    width: int
    plan: TilePlan
    visual_tokens: int
    """Before any sampling."""

    @property
    def tiles(self) -> int:
        """Tiles with the global view."""
        return 1 + self.plan.rows * self.plan.cols


def view_canvas(data: bytes, name: str, geometry: ImageGeometry, side: int) -> CanvasView:
    """Decode an image and draw it.

    Args:
        data: the file.
        name: of the image, for messages.
        geometry: how it is tiled.
        side: longer side of the drawing in pixels.

    Raises:
        SampleError: it cannot be decoded, or no canvas suits it.
    """
    header = probe(data, name, geometry.max_image_pixels)
    rgb = decode(data, name, geometry.max_image_pixels)
    height, width = rgb.shape[1:]
    plan = plan_image(height, width, name, geometry)
    return CanvasView(
        picture=draw_canvas(rgb, plan, geometry, side),
        format=header.format,
        height=height,
        width=width,
        plan=plan,
        visual_tokens=visual_token_count(height, width, geometry),
    )


def draw_canvas(rgb: Tensor, plan: TilePlan, geometry: ImageGeometry, side: int) -> Image.Image:
    """The canvas with the image in its place; the padding, which is black in training, is striped here.

    Args:
        rgb: uint8 [3, H, W].
        plan: of the image.
        geometry: gives the tile side.
        side: longer side of the drawing in pixels.
    """
    assert rgb.dtype == torch.uint8 and rgb.ndim == 3
    scale = side / max(plan.canvas_height, plan.canvas_width)

    def scaled(length: int) -> int:
        return round(length * scale)

    canvas = Image.new("RGB", (scaled(plan.canvas_width), scaled(plan.canvas_height)), PADDING)
    pen = ImageDraw.Draw(canvas)
    for offset in range(-canvas.height, canvas.width, _STRIPES):
        pen.line([(offset, canvas.height), (offset + canvas.height, 0)], STRIPE, 5)
    left, top = scaled(plan.pad_left), scaled(plan.pad_top)
    right, bottom = scaled(plan.pad_left + plan.resized_width), scaled(plan.pad_top + plan.resized_height)
    size = (max(right - left, 1), max(bottom - top, 1))
    image = Image.fromarray(rgb.permute(1, 2, 0).contiguous().numpy())
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0), (left, top))
    tile = geometry.tile_size
    # The outer borders lie inside the picture.
    across = [min(max(scaled(col * tile), 1), canvas.width - 2) for col in range(plan.cols + 1)]
    down = [min(max(scaled(row * tile), 1), canvas.height - 2) for row in range(plan.rows + 1)]
    for colour, thickness in ((HALO, 6), (BORDER, 3)):
        for x in across:
            pen.line([(x, 0), (x, canvas.height)], colour, thickness)
        for y in down:
            pen.line([(0, y), (canvas.width, y)], colour, thickness)
    return canvas
