"""Random access to the records of a JSON list or of JSON lines, without holding the file in memory.

One scan notes the bytes where each record begins and ends; later a record is read with ``os.pread``, which has no
reading position and therefore works in forked processes.
"""

import gzip
import json
import os
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path
from typing import Any, BinaryIO, cast

from tqdm import tqdm

from data_pipeline.errors import SampleError
from data_pipeline.sources.json_reader import JsonReader

LINES = (".jsonl", ".ndjson")
"""Files with one record a line."""

MAX_RECORD_BYTES = 64 << 20
"""A record larger than this is refused: published ones have a few KB, so it is a broken file."""


class JsonRecords:
    """``records[index]`` is a decoded record of a ``.json`` file that holds a list, or of ``.jsonl`` or ``.ndjson``.

    Any of them may end in ``.gz``: it is unpacked into a temporary file (in ``TMPDIR``), which ends with the program.
    Memory: 24 bytes a record; while scanning, a few times the largest record.

    Args:
        file: the file; with the suffix ``.jsonl``, one record a line.
        visit: called with each record during the scan, in order.
        key: the list stands under this key of an object, such as ``{"data": [...]}``; not for lines.
        max_record_bytes: size of the largest record that is accepted.

    Raises:
        ValueError: no such file, not UTF-8, broken JSON (with line and column), nested too deeply, a record too large,
            no list, or a .gz that is broken or finds no room.
    """

    def __init__(
        self,
        file: Path,
        visit: Callable[[Any], None],
        *,
        key: str | None = None,
        max_record_bytes: int = MAX_RECORD_BYTES,
    ):
        self.file = file
        self._begins, self._ends, self._numbers = array("q"), array("q"), array("q")
        is_lines = file.name.lower().removesuffix(".gz").endswith(LINES)
        self.unit = "line" if is_lines else "entry"
        """What ``number`` counts."""
        self._stream = _opened(file)  # kept open for pread
        size = os.fstat(self._stream.fileno()).st_size
        with os.fdopen(os.dup(self._stream.fileno()), "rb") as stream, _progress(file, size) as progress:
            reader = JsonReader(file, stream, max_record_bytes, progress)
            try:
                for begin, end, record in reader.lines() if is_lines else reader.elements(key):
                    self._numbers.append(reader.line if is_lines else len(self))
                    self._begins.append(begin)
                    self._ends.append(end)
                    visit(record)
            except OSError as error:
                raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
        self.digest = reader.digest.hexdigest()
        """SHA-256 of the JSON."""

    def __len__(self) -> int:
        """Number of records."""
        return len(self._begins)

    def number(self, index: int) -> int:
        """The line of a record, from 1, or its place in the list, from 0."""
        return self._numbers[index]

    def __getitem__(self, index: int) -> Any:
        """Read and decode one record.

        Raises:
            ValueError: the file was changed since it was scanned.
            SampleError: nested too deeply for the place where it is read, though not for the scan.
            OSError: the file can no longer be read.
        """
        begin, end = self._begins[index], self._ends[index]
        try:
            return json.loads(os.pread(self._stream.fileno(), end - begin, begin).decode("utf-8-sig"))
        except RecursionError as error:
            raise SampleError("broken json", "nested too deeply") from error
        except ValueError as error:
            raise ValueError(f"{self.file}: bytes {begin} to {end}: changed since the file was opened") from error


def read_json(file: Path, max_bytes: int = MAX_RECORD_BYTES) -> Any:
    """Decode a whole small file.

    Raises:
        ValueError: as for ``JsonRecords``.
    """
    try:
        with file.open("rb") as stream:
            return JsonReader(file, stream, max_bytes, None).whole()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error


def _opened(file: Path) -> BinaryIO:
    """The file; of a .gz, what it holds."""
    if file.suffix.lower() == ".gz":
        return _unpacked(file)
    try:
        return file.open("rb", buffering=0)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error


def _unpacked(file: Path) -> BinaryIO:
    try:
        temporary = tempfile.TemporaryFile()  # noqa: SIM115 (stays open for pread)
        folder = tempfile.gettempdir()
        spare = shutil.disk_usage(folder).free // 10
        with gzip.open(file) as stream:
            while block := stream.read(1 << 20):
                temporary.write(block)
                if shutil.disk_usage(folder).free < spare:  # a few MB can unpack to more than any disk holds
                    raise OSError(ENOSPC, "it takes more than nine tenths of what was free")
        temporary.seek(0)  # which also writes what is left in the buffer
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file}: not a whole gzip file ({error})") from error
    except OSError as error:
        room = f"; set TMPDIR to a folder with more room than {tempfile.gettempdir()}" if error.errno == ENOSPC else ""
        raise ValueError(f"{file}: cannot be unpacked ({error.strerror}{room})") from error
    return cast(BinaryIO, temporary)


def _progress(file: Path, size: int) -> Any:
    # The delay keeps files that are scanned in a moment silent.
    return tqdm(desc=f"scanning {file.name}", total=size, unit="B", unit_scale=True, delay=2, leave=False)
