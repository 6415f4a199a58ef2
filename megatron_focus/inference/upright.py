"""Decoding a picture that a model is asked about."""

from PIL import ExifTags, Image, ImageOps

from data_pipeline.decoding.pillow import load_rgb
from data_pipeline.decoding.probe import open_image


def decode_upright(data: bytes, name: str, max_image_pixels: int) -> Image.Image:
    """The pixels that training decodes, turned as the file's EXIF orientation says.

    So does transformers' ``load_image``, through which ``pipeline`` and a release's own example read the same file.
    Training takes the pixels as they are stored.

    Args:
        data: the file.
        name: of the picture, for messages.
        max_image_pixels: a picture with more is refused from its header.

    Raises:
        SampleError: as ``data_pipeline.decoding.pillow.decode``.
    """
    with open_image(data, name, max_image_pixels) as image:
        picture = Image.fromarray(load_rgb(image, name).permute(1, 2, 0).numpy())
        picture.getexif()[ExifTags.Base.Orientation] = _orientation(image)
    return ImageOps.exif_transpose(picture)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that loading has not applied yet; 1, upright, where none can be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF makes Pillow's parser raise almost anything, and leaves the pixels whole
        return 1
