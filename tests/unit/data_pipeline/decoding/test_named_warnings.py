"""Pillow's warnings name the image, on the reference path and on the fast one."""

import struct
import threading
import warnings
from collections import Counter

import pytest
from PIL import Image

from data_pipeline.decoding import cpu, pillow
from data_pipeline.decoding import named_warnings as naming
from data_pipeline.decoding.named_warnings import named_warnings
from data_pipeline.decoding.probe import MAX_IMAGE_PIXELS, probe
from data_pipeline.errors import SampleError
from tests.pictures import encoded

LIMIT = 100_000_000


@pytest.fixture(autouse=True)
def nothing_was_warned_of(monkeypatch):
    monkeypatch.setattr(naming, "_given", Counter())


def with_exif(data, exif):
    """The JPEG with an EXIF segment in front."""
    segment = b"Exif\0\0" + exif
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


@pytest.mark.parametrize("decode", [pillow.decode, cpu.decode, probe])
def test_damaged_exif(decode, image_bytes):
    """The picture is whole, so it is taken; its resolution is looked for in the EXIF, which ends too early."""
    data = image_bytes(40, 60)
    start = data.index(b"\xff\xdb")
    data = with_exif(data[:2] + data[start:], b"II*\0\x08\0\0\0\x05\0\x1a\x01")
    with pytest.warns(UserWarning, match=r"^image a/b\.jpg: Corrupt EXIF data"):
        assert decode(data, "a/b.jpg", LIMIT) is not None


def test_large_image():
    """Above Pillow's own mark and below the limit, as the header says; the pixels are missing."""
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", 10_000, 9_900)
    assert MAX_IMAGE_PIXELS // 2 < 99_000_000 < LIMIT
    with pytest.warns(Image.DecompressionBombWarning, match=r"^image big\.bmp: Image size \(99000000 pixels\) exceeds"):
        assert probe(bytes(data), "big.bmp", LIMIT).width == 10_000


def test_every_image_is_named_and_other_warnings_are_left_alone(recwarn):
    for name in ("a", "b"):
        with named_warnings(name):
            warnings.warn("odd", UserWarning, stacklevel=1)
    warnings.warn("other", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == ["image a: odd", "image b: odd", "other"]


def test_only_the_first_images_of_a_kind_are_named(recwarn):
    """However many a data set has, and whatever their names are; another kind is counted by itself."""
    for number in range(1000):
        with named_warnings(f"{number}"):
            warnings.warn(f"odd {number}", UserWarning, stacklevel=1)
    with named_warnings("a"):
        warnings.warn("rare", UserWarning, stacklevel=1)
    told = [str(warning.message) for warning in recwarn]
    last = "image 2: odd 2 (the next images with this warning are not named)"
    assert told == ["image 0: odd 0", "image 1: odd 1", last, "image a: rare"]


def test_an_error_keeps_the_warnings_before_it():
    with (
        pytest.warns(UserWarning, match="image a: odd"),
        pytest.raises(SampleError, match="broken"),
        named_warnings("a"),
    ):
        warnings.warn("odd", UserWarning, stacklevel=1)
        raise SampleError("damaged image", "broken")


def test_threads_do_not_mix_their_names(monkeypatch):
    monkeypatch.setattr(naming, "_NAMED", 1000)
    before = warnings.showwarning, list(warnings.filters)

    def work(number):
        for _ in range(200):
            with named_warnings(f"{number}"):
                warnings.warn(f"of {number}", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    told = [str(warning.message).split(": of ") for warning in caught]
    assert len(told) == 800
    assert all(name == f"image {number}" for name, number in told)
    assert (warnings.showwarning, list(warnings.filters)) == before


@pytest.mark.parametrize("decode", [pillow.decode, cpu.decode])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_an_image_that_finds_no_memory_is_named(decode, format, image_bytes, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(cpu.simplejpeg, "decode_jpeg", full)
    monkeypatch.setattr(pillow, "_to_rgb", full)
    with pytest.raises(SampleError, match=r"image a/b: 60x40 pixels do not fit into memory") as error:
        decode(image_bytes(40, 60, format), "a/b", LIMIT)
    assert error.value.reason == "not enough memory"


def test_a_header_that_finds_no_memory_is_named(image_bytes, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(SampleError, match=r"image a/b: what its header asks for does not fit into memory") as error:
        probe(image_bytes(40, 60), "a/b", LIMIT)
    assert error.value.reason == "not enough memory"
