"""Synthetic photographs in a shard: what every side of the benchmark reads."""

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

QUALITY = 90
"""Of the JPEGs; the chroma is stored at half resolution, as cameras and the web do."""


def synthetic_photo(width: int, height: int, seed: int) -> Image.Image:
    """Random pixels with the spectrum of photographs: amplitude falls with the frequency to the power of 1.4.

    As a JPEG of ``QUALITY`` it has 2.2 to 2.8 bits a pixel; scikit-image's photographs have 2.1 to 2.4.
    """
    random = np.random.default_rng(seed)
    side = max(width, height)
    rows, columns = np.fft.fftfreq(height)[:, None] * side, np.fft.rfftfreq(width)[None] * side
    amplitude = np.maximum(np.hypot(rows, columns), 1) ** -1.4
    amplitude[0, 0] = 0

    def field() -> np.ndarray:
        values = np.fft.irfft2(amplitude * np.exp(2j * np.pi * random.random(amplitude.shape)), (height, width))
        return values / values.std()

    brightness = 120 + 60 * field()
    channels = [brightness + 12 * field() for _ in range(3)]
    return Image.fromarray(np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8))


def write_shard(path: Path, width: int, height: int, count: int) -> None:
    """A tar file of ``count`` JPEGs."""
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            buffer = io.BytesIO()
            synthetic_photo(width, height, seed=number).save(buffer, "JPEG", quality=QUALITY)
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)


class Shard:
    """Reads the members of a tar file at random, from any thread."""

    def __init__(self, path: Path, descriptor: int):
        self._descriptor = descriptor
        with tarfile.open(path) as tar:
            self._places = {member.name: (member.size, member.offset_data) for member in tar}

    @property
    def names(self) -> list[str]:
        """Of the members, in order."""
        return list(self._places)

    def read(self, name: str) -> bytes:
        """The bytes of a member."""
        return os.pread(self._descriptor, *self._places[name])


@contextmanager
def open_shard(path: Path) -> Iterator[Shard]:
    """The shard, until the end of the block."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield Shard(path, descriptor)
    finally:
        os.close(descriptor)
