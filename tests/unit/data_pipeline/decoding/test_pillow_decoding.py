"""The reference path, and that the fast one gives the same pixels."""

import io

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from data_pipeline.config import ImageGeometry
from data_pipeline.decoding import cpu
from data_pipeline.decoding.cpu import cpu_tiles
from data_pipeline.decoding.pillow import decode
from data_pipeline.decoding.probe import FORMATS, probe
from tests.pictures import PICTURES, encoded

LIMIT = 100_000_000


def both(data):
    """What both paths decode."""
    pixels = decode(data, "x", LIMIT)
    assert pixels.dtype == torch.uint8
    assert torch.equal(cpu.decode(data, "x", LIMIT), pixels)
    return pixels


def test_probe_reads_the_header(image_bytes):
    for format in FORMATS:
        header = probe(image_bytes(50, 70, format), "x", LIMIT)
        assert (header.height, header.width, header.format) == (50, 70, format)
        assert header.mode == ("P" if format == "GIF" else "RGB")


def test_decode_equals_pillow(image_bytes):
    data = image_bytes(33, 47, "JPEG")
    pixels = both(data)
    assert pixels.shape == (3, 33, 47)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"keep_rgb": True}])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_every_kind_of_jpeg_gives_pillows_pixels(options, subsampling):
    photo = PICTURES["photo, odd size"]()
    if options.get("keep_rgb"):
        subsampling = "4:4:4"
    for quality in (30, 75, 100):
        both(encoded(photo, "JPEG", quality=quality, subsampling=subsampling, **options))
        both(encoded(photo.convert("L"), "JPEG", quality=quality))


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_rare_chroma_subsampling_gives_pillows_pixels(subsampling):
    """Pillow reads these and does not write them."""
    both(simplejpeg.encode_jpeg(np.array(PICTURES["photo, odd size"]()), colorsubsampling=subsampling))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (100, 1), (4, 400)])
def test_tiny_and_narrow_images(format, size):
    assert both(encoded(Image.new("RGB", size, (200, 100, 50)), format)).shape == (3, *size[::-1])


def test_tiles_of_a_single_pixel():
    tiles = cpu_tiles(encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), "x", ImageGeometry())
    assert tiles.shape == (3, 3, 336, 336)
    assert torch.equal(tiles[0], torch.tensor([9, 8, 7], dtype=torch.uint8).view(3, 1, 1).expand(3, 336, 336))


def test_a_png_named_jpg_is_fine(image_bytes):
    data = image_bytes(20, 30, "PNG")
    assert probe(data, "x.jpg", LIMIT).format == "PNG"
    assert cpu.decode(data, "x.jpg", LIMIT).shape == (3, 20, 30)


def test_exif_orientation_is_not_applied(image_bytes):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    for format in ("JPEG", "PNG", "WEBP"):
        data = image_bytes(20, 40, format, exif=exif)
        assert probe(data, "x", LIMIT).height == 20
        assert both(data).shape == (3, 20, 40)


def test_a_tiffs_orientation_is_applied_by_pillow(image_bytes):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = image_bytes(20, 40, "TIFF", exif=exif)
    assert probe(data, "x", LIMIT).height == 40
    upright = both(image_bytes(20, 40, "TIFF")).rot90(-1, (1, 2))
    assert torch.equal(both(data), upright)


def test_grey_palette_and_alpha_become_rgb():
    colour = Image.new("RGB", (4, 4), (200, 100, 50))
    palette = colour.convert("P", palette=Image.Palette.ADAPTIVE)
    for image, format, options in [
        (palette, "PNG", {}),
        (palette, "PNG", {"transparency": b"\x00"}),
        (palette, "GIF", {"transparency": 0}),
        (colour.convert("RGBA"), "PNG", {}),
        (Image.new("RGBA", (4, 4), (200, 100, 50, 0)), "PNG", {}),  # the colour under full transparency stays
        (colour, "TIFF", {}),
    ]:
        assert both(encoded(image, format, **options))[:, 0, 0].tolist() == [200, 100, 50]
    assert both(encoded(Image.new("L", (4, 4), 7), "PNG")).unique().tolist() == [7]
    assert both(encoded(Image.new("1", (4, 4), 1), "PNG")).unique().tolist() == [255]


def test_cmyk_jpeg():
    """Pillow writes CMYK as Adobe does, inverted and marked; without the mark the values count as they are."""
    colour = Image.new("RGB", (16, 16), (200, 100, 50))
    data = encoded(colour.convert("CMYK"), "JPEG", quality=100)
    assert b"Adobe" in data and probe(data, "x", LIMIT).mode == "CMYK"
    # Measured: 1 level, of the JPEG's loss.
    assert (both(data)[:, 0, 0].int() - torch.tensor([200, 100, 50])).abs().max() <= 3
    mark = data.index(b"\xff\xee")
    plain = data[:mark] + data[mark + 2 + int.from_bytes(data[mark + 2 : mark + 4], "big") :]
    with Image.open(io.BytesIO(plain)) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(both(plain).permute(1, 2, 0).numpy(), expected)


def test_sixteen_bit_grey_is_scaled():
    values = np.array([[0, 257], [32896, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        pixels = both(encoded(Image.fromarray(values), format))
        assert pixels[0].tolist() == [[0, 1], [128, 255]] and torch.equal(pixels[0], pixels[2])
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(every.astype(np.float64) / 257)
    assert np.array_equal(both(encoded(Image.fromarray(every), "PNG"))[1].numpy(), expected)


def test_thirty_two_bit_grey():
    """Pillow opens such TIFFs as signed integers; small values are levels, larger ones are 16-bit."""
    levels = both(encoded(Image.fromarray(np.array([[0, 7], [255, -5]], np.int32)), "TIFF"))
    assert levels[0].tolist() == [[0, 7], [255, 0]]
    wide = both(encoded(Image.fromarray(np.array([[0, 257], [65535, 2**31 - 1]], np.int32)), "TIFF"))
    assert wide[0].tolist() == [[0, 1], [255, 255]]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation_gives_its_first_frame(format):
    frames = [Image.new("RGB", (5, 6), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    lossless = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **lossless)
    assert both(data)[:, 0, 0].tolist() == [255, 0, 0]


def test_a_second_picture_after_a_jpeg_is_ignored():
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    data = encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:], quality=100)
    assert probe(data, "x", LIMIT).format == "JPEG"
    assert both(data)[0].min() > 250


def test_an_image_too_elongated_for_its_canvases_is_named():
    geometry = ImageGeometry(tile_size=28, grid_pinpoints=[[28, 56]])
    data = encoded(Image.new("RGB", (8000, 100)), "PNG")
    with pytest.raises(ValueError, match="image x: an image of 8000x100 pixels is too elongated") as error:
        cpu_tiles(data, "x", geometry)
    assert error.value.reason == "too elongated"
