"""From the bytes of an image file to pixels, with errors that say which image and why."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipeline.config import ImageGeometry

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats accepted, by Pillow's names. Others are refused, so that a file never reaches a rarely used decoder."""

MAX_ELONGATION = 100
"""An image more elongated than 100:1 is refused: hardly a pixel of its short side would be left on a canvas."""


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file says: size in pixels and format (one of ``FORMATS``)."""

    height: int
    width: int
    format: str


def probe(data: bytes, name: str, geometry: ImageGeometry) -> ImageHeader:
    """Read the header alone; no pixel is decoded.

    Raises:
        ValueError: ``name`` is not an image of an accepted format, has more than ``geometry.max_image_pixels``, or is
            more elongated than ``MAX_ELONGATION``.
    """
    with _open(data, name, geometry) as image:
        return _header(image)


def decode(data: bytes, name: str, geometry: ImageGeometry) -> Tensor:
    """Decode to uint8 [3, H, W], red green blue (channels last in memory, which resizing is faster with).

    The EXIF orientation is not applied, as in LLaVA. Of an animation the first frame is taken. Transparent pixels keep
    the colour stored under them, as Pillow's conversion to RGB does; integer greyscale of more than 8 bits is scaled.

    Raises:
        ValueError: as ``probe``, and for a file that is truncated or damaged.
    """
    with _open(data, name, geometry) as image:
        try:
            rgb = np.array(_to_rgb(image))
        except Exception as error:  # damaged files make Pillow's decoders raise almost anything
            raise ValueError(f"image {name}: cannot be decoded ({error})") from error
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _open(data: bytes, name: str, geometry: ImageGeometry) -> Image.Image:
    if not data:
        raise ValueError(f"image {name}: the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns above a limit of its own; ours is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {name}: too many pixels ({error})") from error
    except Exception as error:  # damaged headers make Pillow's parsers raise almost anything
        begin = data[:8].hex(" ")
        accepted = ", ".join(FORMATS)
        raise ValueError(
            f"image {name}: not a readable {accepted} file ({len(data)} bytes, beginning {begin}; {error})"
        ) from error
    width, height = image.size
    reason = None
    if width * height > geometry.max_image_pixels:
        reason = f"{width * height} pixels, more than max_image_pixels={geometry.max_image_pixels}"
    elif max(width, height) > MAX_ELONGATION * min(width, height):
        reason = f"more elongated than {MAX_ELONGATION}:1"
    if reason is not None:
        image.close()
        raise ValueError(f"image {name}: {width}x{height} is {reason}")
    return image


def _header(image: Image.Image) -> ImageHeader:
    assert image.format is not None, "Pillow sets the format of every file it opens"
    # A JPEG with a second picture after it (many cameras write them) is an MPO to Pillow; its first picture is a JPEG.
    return ImageHeader(height=image.height, width=image.width, format="JPEG" if image.format == "MPO" else image.format)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode.startswith("I"):
        # Pillow would clip these at 255. Files store 16-bit greyscale over the full range; 257 = 65535 / 255.
        values = np.asarray(image).astype(np.float64)
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values = values / 257
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    return image.convert("RGB")
