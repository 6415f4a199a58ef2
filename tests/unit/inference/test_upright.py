"""Pictures of every orientation, as transformers reads them."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image
from transformers.image_utils import load_image

from data_pipeline.decoding.pillow import decode
from examples.demo.upload import read_upload
from megatron_focus.inference.image_source import open_picture
from tests.pictures import encoded

PICTURE = Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3))


def turned(orientation, format, **options):
    """A file whose EXIF says how to turn it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(PICTURE, format, exif=exif, **options)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 mean something
def test_turned_as_transformers_does(tmp_path, format, orientation):
    several = {"save_all": True, "append_images": [PICTURE]} if format == "MPO" else {}
    path = tmp_path / "photo"
    path.write_bytes(turned(orientation, format, **several))
    picture, theirs = open_picture(str(path)), load_image(str(path))
    assert picture.mode == "RGB" and picture.size == ((5, 7) if orientation in (5, 6, 7, 8) else (7, 5))
    assert np.array_equal(np.asarray(picture), np.asarray(theirs))
    assert np.array_equal(np.asarray(read_upload(path)), np.asarray(theirs))
    # Nobody who gets the picture turns it again.
    assert np.array_equal(np.asarray(load_image(picture)), np.asarray(theirs))


def test_training_takes_the_pixels_as_stored():
    data = turned(6, "JPEG")
    with Image.open(io.BytesIO(data)) as stored:
        assert np.array_equal(decode(data, "x", 100).permute(1, 2, 0).numpy(), np.asarray(stored))


def test_damaged_exif_says_nothing(tmp_path):
    for damage in (b"Exif\0\0", b"Exif\0\0MM\0\x2a\xff\xff\xff\xff", b"Exif\0\0nonsense", b"\xff" * 40):
        (tmp_path / "photo").write_bytes(encoded(PICTURE, "JPEG", exif=damage))
        assert open_picture(str(tmp_path / "photo")).size == (7, 5)
