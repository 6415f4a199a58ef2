import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.config import ImageGeometry
from data_pipeline.decode import FORMATS, decode, probe

GEOMETRY = ImageGeometry()


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_probe_reads_size_and_format(image_bytes):
    for format in FORMATS:
        header = probe(image_bytes(50, 70, format), "x", GEOMETRY)
        assert (header.height, header.width, header.format) == (50, 70, format)


def test_decode_equals_pillow(image_bytes):
    data = image_bytes(33, 47, "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)))
    pixels = decode(data, "x", GEOMETRY)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 33, 47)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_exif_orientation_is_not_applied(image_bytes):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    data = image_bytes(20, 40, "JPEG", exif=exif)
    assert probe(data, "x", GEOMETRY).height == 20
    assert decode(data, "x", GEOMETRY).shape == (3, 20, 40)


def test_grey_palette_cmyk_and_alpha_become_rgb():
    colour = Image.new("RGB", (4, 4), (200, 100, 50))
    for image, format, options in [
        (colour.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", {}),
        (colour.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", {"transparency": b"\x00"}),
        (colour.convert("RGBA"), "PNG", {}),
        (Image.new("RGBA", (4, 4), (200, 100, 50, 0)), "PNG", {}),  # the colour under full transparency stays
        (colour, "TIFF", {}),
    ]:
        pixels = decode(saved(image, format, **options), "x", GEOMETRY)
        assert pixels[:, 0, 0].tolist() == [200, 100, 50]
    cmyk = decode(saved(colour.convert("CMYK"), "JPEG", quality=100), "x", GEOMETRY)
    assert (cmyk[:, 0, 0].int() - torch.tensor([200, 100, 50])).abs().max() <= 3  # JPEG loss
    assert decode(saved(Image.new("L", (4, 4), 7), "PNG"), "x", GEOMETRY).unique().tolist() == [7]
    assert decode(saved(Image.new("1", (4, 4), 1), "PNG"), "x", GEOMETRY).unique().tolist() == [255]


def test_sixteen_bit_grey_is_scaled():
    values = np.array([[0, 257], [32896, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        pixels = decode(saved(Image.fromarray(values), format), "x", GEOMETRY)
        assert pixels[0].tolist() == [[0, 1], [128, 255]] and torch.equal(pixels[0], pixels[2])


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (5, 6), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for format in ("GIF", "WEBP", "PNG"):
        lossless = {"lossless": True} if format == "WEBP" else {}
        data = saved(frames[0], format, save_all=True, append_images=frames[1:], **lossless)
        assert decode(data, "x", GEOMETRY)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_file_is_refused(format, image_bytes):
    data = image_bytes(300, 300, format)
    with pytest.raises(ValueError, match=r"image a/b\.jpg: "):
        decode(data[: len(data) // 2], "a/b.jpg", GEOMETRY)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"hello, this is text", b"<svg></svg>", bytes(1000)])
def test_not_an_image_is_refused(data):
    for function in (probe, decode):
        with pytest.raises(ValueError, match=r"image a/b\.jpg: (the file is empty|not a readable)"):
            function(data, "a/b.jpg", GEOMETRY)


def test_flipped_bytes_never_raise_anything_but_value_error(image_bytes):
    random = np.random.default_rng(0)
    for format in FORMATS:
        data = np.frombuffer(image_bytes(40, 40, format), np.uint8)
        for _ in range(60):
            damaged = data.copy()
            damaged[random.integers(0, len(data), 8)] = random.integers(0, 256, 8)
            try:
                decode(damaged.tobytes(), "x", GEOMETRY)
            except ValueError as error:
                assert str(error).startswith("image x: ")


def test_pixel_limit_holds_before_anything_is_decoded():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (11_000, 20_000):  # above our limit only; above Pillow's own too
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        for function in (probe, decode):
            with pytest.raises(ValueError, match=r"image big\.png: .*pixels"):
                function(data, "big.png", GEOMETRY)


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match=r"image x: .*no defined range"):
        decode(saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "x", GEOMETRY)


def test_elongated_image_is_refused():
    with pytest.raises(ValueError, match="image x: 404x4 is more elongated than 100:1"):
        probe(saved(Image.new("RGB", (404, 4)), "PNG"), "x", GEOMETRY)
    assert probe(saved(Image.new("RGB", (4, 400)), "PNG"), "x", GEOMETRY).height == 400
