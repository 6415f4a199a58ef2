"""Reads the header of an image file and refuses, before any pixel is decoded, what could exhaust memory or time.

Reasons of the errors: ``empty image``, ``not an image``, ``truncated image``, ``too many pixels``, ``too elongated``,
``too many scans``, ``not enough memory``.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_pipeline.decoding.named_warnings import named_warnings
from data_pipeline.errors import SampleError

MAX_IMAGE_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Pillow refuses an image with more, whatever limit is set."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats accepted, by Pillow's names. Others are refused, so that a file never reaches a rarely used decoder."""

MAX_ELONGATION = 100
"""An image more elongated than 100:1 is refused: hardly a pixel of its short side would be left on a canvas."""

MAX_SCANS = 500
"""A JPEG with more scans is refused: each passes over the whole image again, so that a small file can take hours.
Cameras and encoders write about ten; libjpeg-turbo's own limit (``TJFLAG_LIMITSCANS``) is the same."""


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file says."""

    height: int
    """In pixels, as decoded: the EXIF orientation is not applied but for a TIFF."""
    width: int
    format: str
    """One of ``FORMATS``."""
    mode: str
    """Pixel format by Pillow's name, such as ``RGB``, ``L`` (grey) or ``CMYK``."""


def probe(data: bytes, name: str, max_image_pixels: int) -> ImageHeader:
    """Read the header alone.

    Args:
        data: the file.
        name: of the image, for messages.
        max_image_pixels: an image with more is refused.

    Raises:
        SampleError: see the reasons at the file's top.
    """
    with open_image(data, name, max_image_pixels) as image:
        return ImageHeader(height=image.height, width=image.width, format=format_of(image), mode=image.mode)


def open_image(data: bytes, name: str, max_image_pixels: int) -> Image.Image:
    """Pillow's lazy image with its header checked as by ``probe``; loading it decodes the pixels."""
    if not data:
        raise SampleError("empty image", f"image {name}: the file is empty")
    try:
        with named_warnings(name):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise SampleError("too many pixels", f"image {name}: {error}") from error
    except MemoryError as error:
        message = f"image {name}: what its header asks for does not fit into memory ({len(data)} bytes)"
        raise SampleError("not enough memory", message) from error
    except Exception as error:  # damaged headers make Pillow's parsers raise almost anything
        if _webp_is_cut(data):
            raise SampleError("truncated image", f"image {name}: ends after {len(data)} bytes") from error
        # What Pillow says of a file that it does not know is no more than that, and the address of an object.
        why = "" if isinstance(error, UnidentifiedImageError) else f"; {error}"
        raise SampleError(
            "not an image",
            f"image {name}: not a readable {', '.join(FORMATS)} file ({len(data)} bytes, "
            f"beginning {data[:8].hex(' ')}{why})",
        ) from error
    width, height = image.size
    size = f"image {name}: {width}x{height}"
    if width * height > max_image_pixels:
        refusal = ("too many pixels", f"{size} is {width * height} pixels, more than {max_image_pixels=}")
    elif max(width, height) > MAX_ELONGATION * min(width, height):
        refusal = ("too elongated", f"{size} is more elongated than {MAX_ELONGATION}:1")
    elif format_of(image) == "JPEG" and (scans := _scans(data)) > MAX_SCANS:
        refusal = ("too many scans", f"{size} has about {scans} scans, more than {MAX_SCANS}")
    else:
        return image
    image.close()
    raise SampleError(*refusal)


def format_of(image: Image.Image) -> str:
    """One of ``FORMATS``.

    A JPEG with a second picture after it (many cameras write them) is an MPO to Pillow; its first picture is a JPEG.
    """
    assert image.format is not None, "Pillow sets the format of every file it opens"
    return "JPEG" if image.format == "MPO" else image.format


def _scans(data: bytes) -> int:
    """Start-of-scan marks, FF DA, in a JPEG; other segments may hold a few by chance, compressed pixels none."""
    values = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(values[:-1] == 0xFF)  # far quicker than bytes.count, which takes as long as Pillow's parsing
    return int(np.count_nonzero(values[marks + 1] == 0xDA))


def _webp_is_cut(data: bytes) -> bool:
    """Whether a WEBP is shorter than its first bytes say; Pillow reports that as any other damage."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)
