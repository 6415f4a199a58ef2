"""Random access to the records of a JSON list or of JSON lines, without holding the file in memory.

One scan notes the bytes where each record begins and ends; later a record is read with ``os.pread``, which has no
reading position and therefore works in forked processes.
"""

import json
import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.errors import SampleError
from data_pipeline.sources.json_reader import JsonReader

MAX_RECORD_BYTES = 64 << 20
"""A record larger than this is refused: published ones have a few KB, so it is a broken file."""


class JsonRecords:
    """``records[index]`` is a decoded record of a ``.json`` file that holds a list, or of a ``.jsonl`` file.

    Memory: 16 bytes a record; while scanning, a few times the largest record.

    Args:
        file: the file; with the suffix ``.jsonl``, one record a line.
        visit: called with each record during the scan, in order.
        key: the list stands under this key of an object, such as ``{"data": [...]}``; not for lines.
        max_record_bytes: size of the largest record that is accepted.

    Raises:
        ValueError: no such file, not UTF-8, broken JSON (with line and column), nested too deeply, a record too large,
            or no list.
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
        self._begins, self._ends = array("q"), array("q")
        try:
            # Kept open and unbuffered for pread.
            self._stream = file.open("rb", buffering=0)
        except OSError as error:
            raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
        with file.open("rb") as stream, _progress(file) as progress:
            reader = JsonReader(file, stream, max_record_bytes, progress)
            scan = reader.lines() if file.suffix == ".jsonl" else reader.elements(key)
            for begin, end, record in scan:
                self._begins.append(begin)
                self._ends.append(end)
                visit(record)
        self.digest = reader.digest.hexdigest()
        """SHA-256 of the file."""

    def __len__(self) -> int:
        """Number of records."""
        return len(self._begins)

    def __getitem__(self, index: int) -> Any:
        """Read and decode one record.

        Raises:
            ValueError: the file was changed since it was scanned.
            SampleError: nested too deeply for the place where it is read, though not for the scan.
        """
        begin, end = self._begins[index], self._ends[index]
        try:
            return json.loads(os.pread(self._stream.fileno(), end - begin, begin).decode())
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


def _progress(file: Path) -> Any:
    # The delay keeps files that are scanned in a moment silent.
    total = file.stat().st_size
    return tqdm(desc=f"scanning {file.name}", total=total, unit="B", unit_scale=True, delay=2, leave=False)
