"""Decoding with Pillow: the reference for every other path, and the last word on what is damaged.

Reasons of the errors: those of ``probe``, and ``truncated image``, ``damaged image``, ``unsupported pixels``, ``not
enough memory``.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipeline.decoding.named_warnings import named_warnings
from data_pipeline.decoding.probe import open_image
from data_pipeline.errors import SampleError


def decode(data: bytes, name: str, max_image_pixels: int) -> Tensor:
    """Decode to uint8 [3, H, W], red green blue (channels last in memory, which resizing is faster with).

    The EXIF orientation is not applied, as in LLaVA; only a TIFF's is, by Pillow itself. Of an animation the first
    frame is taken. Transparent pixels keep the colour stored under them, as Pillow's conversion to RGB does; integer
    greyscale of more than 8 bits is scaled.

    Args:
        data: the file.
        name: of the image, for messages.
        max_image_pixels: an image with more is refused from its header.

    Raises:
        SampleError: see the reasons at the file's top.
    """
    with open_image(data, name, max_image_pixels) as image:
        return load_rgb(image, name)


def load_rgb(image: Image.Image, name: str) -> Tensor:
    """``decode`` for an image that ``open_image`` has opened."""
    if image.mode == "F":
        raise SampleError("unsupported pixels", f"image {name}: floating-point pixels have no defined range")
    try:
        with named_warnings(name):
            rgb = np.array(_to_rgb(image))
    except MemoryError as error:
        raise out_of_memory(image, name) from error
    except Exception as error:  # damaged files make Pillow's decoders raise almost anything
        truncated = isinstance(error, EOFError) or "truncated" in str(error).lower()
        reason = "truncated image" if truncated else "damaged image"
        raise SampleError(reason, f"image {name}: cannot be decoded ({error})") from error
    return torch.from_numpy(rgb).permute(2, 0, 1)


def out_of_memory(image: Image.Image, name: str) -> SampleError:
    """The error of an image whose pixels find no room."""
    return SampleError("not enough memory", f"image {name}: {image.width}x{image.height} pixels do not fit into memory")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip these at 255. Files store 16-bit greyscale over the full range; 257 = 65535 / 255.
        values = np.array(image, dtype=np.int32)
        np.clip(values, 0, 65535, out=values)
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values += 128
            values //= 257
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    return image.convert("RGB")
