"""Photographs and drawn pictures in encoded form, and how far tiles are from those of transformers' processor."""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw
from skimage import data as photographs
from torch import Tensor

from data_pipeline.anyres import CLIP_STD, hf_grid_pinpoints, normalise
from data_pipeline.config import ImageGeometry


def encoded(image: Image.Image, format: str, **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _drawing() -> Image.Image:
    """Black text and lines on white: the hardest edges there are."""
    image = Image.new("RGB", (900, 600), "white")
    draw = ImageDraw.Draw(image)
    for row in range(20):
        draw.text((10 + 7 * row, 30 * row), "The quick brown fox jumps over the lazy dog. 0123456789", fill="black")
        draw.line((0, 31 * row, 899, 17 * row), fill=(255, 0, 0), width=1 + row % 3)
    return image


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "photo, enlarged": lambda: Image.fromarray(photographs.chelsea()),
    "photo, reduced": lambda: Image.fromarray(photographs.coffee()).resize((1600, 1200), Image.Resampling.BICUBIC),
    "photo, odd size": lambda: Image.fromarray(photographs.astronaut()[:173, :501]),
    "photo, tall": lambda: Image.fromarray(photographs.rocket()[:, 200:330]),
    "photo, grey": lambda: Image.fromarray(photographs.camera()),
    "drawing": _drawing,
    "noise": lambda: Image.fromarray(np.random.default_rng(0).integers(0, 256, (999, 777, 3), dtype=np.uint8)),
    "flat": lambda: Image.new("RGB", (300, 200), (200, 100, 50)),
}


def processor_options(geometry: ImageGeometry) -> dict:
    """Arguments of ``LlavaNextImageProcessor`` for a geometry; its own default is another tile size."""
    side = {"height": geometry.tile_size, "width": geometry.tile_size}
    return {"size": side, "crop_size": side, "image_grid_pinpoints": hf_grid_pinpoints(geometry)}


def drift(tiles: Tensor, data: bytes, processor) -> Tensor:
    """Absolute difference of uint8 tiles from the processor's for the same file, in levels of 0 to 255."""
    theirs = processor(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"][0]
    ours = normalise(tiles.cpu(), torch.float32)
    assert ours.shape == theirs.shape
    return (ours - theirs).abs() * torch.tensor(CLIP_STD).view(3, 1, 1) * 255
