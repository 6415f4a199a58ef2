"""What every source gives: samples in one neutral form, or a reason why one cannot be used."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.conversations.conversation import Turn
from data_pipeline.errors import SampleError

MAX_IMAGE_BYTES = 1 << 30
"""A larger image file is refused unread: 100 million pixels, uncompressed in four channels of 16 bits, have 0.8e9."""


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own; not opened yet."""

    path: Path

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.path)

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            SampleError: it cannot be read, or is too large.
        """
        try:
            size = self.path.stat().st_size
            if size > MAX_IMAGE_BYTES:
                raise SampleError("too many bytes", f"image {self.name}: {size} bytes, more than {MAX_IMAGE_BYTES}")
            return self.path.read_bytes()
        except OSError as error:
            raise SampleError("unreadable image", f"image {self.name}: {error.strerror}") from error
        except MemoryError as error:
            raise SampleError("not enough memory", f"image {self.name}: {size} bytes do not fit into memory") from error


@dataclass(frozen=True)
class ImageBytes:
    """An image that came inside another file, such as a parquet table."""

    name: str
    """File, row and column, for messages."""
    data: bytes

    def read(self) -> bytes:
        """The bytes of the image."""
        return self.data


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation about some images."""

    id: str
    """Unique within its source."""
    source: str
    """Name of the data set."""
    images: tuple[ImageFile | ImageBytes, ...]
    """In the order of the ``<image>`` in the turns."""
    turns: tuple[Turn, ...]
    """Question, answer, question, answer and so on; checked."""
    changes: tuple[str, ...] = ()
    """What was changed to accept it: a few fixed words for each kind."""


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """A sample that its source cannot give. Who reads the source decides whether to stop or to go on."""

    id: str
    source: str
    reason: str
    """A few fixed words, see ``SampleError``."""
    message: str
    """Names the file, the sample, the key and the value."""


def sample_key(source: str, id: str) -> int:
    """A stable 63-bit hash of a sample's name (BLAKE2b of ``source/id``), from which its random draws are made."""
    digest = hashlib.blake2b(f"{source}/{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
