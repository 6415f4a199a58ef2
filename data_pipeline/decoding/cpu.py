"""The fast CPU path: encoded bytes to uint8 tiles, with the pixels that Pillow decodes.

JPEGs in colour or grey go through simplejpeg, which drives the same libjpeg-turbo as Pillow without Pillow's copies
between pixel layouts and takes 55 to 60 % of its time; everything else goes through Pillow. Resizing is torch's
antialiased bicubic on uint8, a vectorised form of Pillow's filter.
"""

import simplejpeg
import torch
from torch import Tensor

from data_pipeline.anyres import TilePlan, make_tiles, plan_tiles
from data_pipeline.config import ImageGeometry
from data_pipeline.decoding.pillow import load_rgb, out_of_memory
from data_pipeline.decoding.probe import format_of, open_image
from data_pipeline.errors import SampleError


def cpu_tiles(data: bytes, name: str, geometry: ImageGeometry) -> Tensor:
    """Decode, resize and cut.

    Args:
        data: an image file.
        name: of the image, for messages.
        geometry: tile side P, canvases and pixel limit.

    Returns:
        uint8 [t, 3, P, P], see ``anyres.make_tiles``.

    Raises:
        SampleError: as ``pillow.decode``, and ``too elongated`` where no canvas would show a pixel.
    """
    rgb = decode(data, name, geometry.max_image_pixels)
    height, width = rgb.shape[1:]
    return make_tiles(rgb, plan_image(height, width, name, geometry), geometry)


def decode(data: bytes, name: str, max_image_pixels: int) -> Tensor:
    """The same pixels and errors as ``pillow.decode``, in less time."""
    with open_image(data, name, max_image_pixels) as image:
        if format_of(image) == "JPEG" and image.mode in ("RGB", "L"):
            try:
                return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB", strict=True)).permute(2, 0, 1)
            except ValueError:
                # Damage, however slight: Pillow decides whether the file is usable, so that every path keeps and
                # refuses the same files.
                pass
            except MemoryError as error:
                raise out_of_memory(image, name) from error
        return load_rgb(image, name)


def plan_image(height: int, width: int, name: str, geometry: ImageGeometry) -> TilePlan:
    """``plan_tiles`` with an error that names the image."""
    try:
        return plan_tiles(height, width, geometry)
    except ValueError as error:
        raise SampleError("too elongated", f"image {name}: {error}") from error
