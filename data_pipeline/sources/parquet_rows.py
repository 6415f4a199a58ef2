"""Random access to the rows of parquet files; one row group at a time is in memory."""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import SampleError
from data_pipeline.sample import ImageBytes, ImageFile
from data_pipeline.sources.layout import find_image

MAX_ROW_GROUP_BYTES = 2 << 30
"""Of a row group's wanted columns, unpacked: what a process that reads it must hold."""


class ParquetRows:
    """``rows[index]`` is the row of several files taken as one, as a dictionary of the wanted columns.

    A file is opened anew for each row group, so nothing is shared between forked processes.

    Args:
        files: in the order in which their rows count.
        columns: names that every file must have.
        max_row_group_bytes: size of the largest row group that is accepted.

    Raises:
        ValueError: a file is not parquet, lacks a column or has too large a row group.
    """

    def __init__(
        self, files: Sequence[Path], columns: Sequence[str], *, max_row_group_bytes: int = MAX_ROW_GROUP_BYTES
    ):
        self.files, self.columns = files, list(columns)
        self._groups: list[tuple[int, int]] = []
        self._ends: list[int] = []
        self._file_ends: list[int] = []
        self.shared_columns: set[str] = set()
        self._cached: tuple[int, pa.Table] | None = None
        digest = hashlib.sha256(repr(self.columns).encode())
        for number, file in enumerate(files):
            metadata, names = _metadata(file)
            digest.update(_footer(file))
            self.shared_columns = self.shared_columns & set(names) if number else set(names)
            if missing := [column for column in columns if column not in names]:
                raise ValueError(f"{file}: no column {', '.join(missing)}; there are {', '.join(names)}")
            for group in range(metadata.num_row_groups):
                details = metadata.row_group(group)
                chunks = [details.column(index) for index in range(details.num_columns)]
                size = sum(
                    chunk.total_uncompressed_size
                    for chunk in chunks
                    if chunk.path_in_schema.split(".")[0] in self.columns
                )
                if size > max_row_group_bytes:
                    raise ValueError(
                        f"{file}: row group {group} unpacks to {size} bytes, more than {max_row_group_bytes}; "
                        "write the file with smaller row groups"
                    )
                self._groups.append((number, group))
                self._ends.append(len(self) + details.num_rows)
            self._file_ends.append(len(self))
        self.digest = digest.hexdigest()
        """SHA-256 of the columns' names and the files' footers: where each chunk lies, its size and statistics."""

    def __len__(self) -> int:
        """Number of rows."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row.

        Raises:
            SampleError: its part of the file is broken, or it has a text that is not UTF-8.
        """
        group, row = self._locate(index)
        if self._cached is None or self._cached[0] != group:
            self._cached = None  # before the next is read: one at a time
            self._cached = group, self._read(group)
        try:
            values: dict[str, Any] = self._cached[1].slice(row, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            raise SampleError("broken text", f"not UTF-8 text ({error.reason})") from error
        return values

    def column(self, name: str) -> list[Any]:
        """All values of a small column.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            return [
                value
                for file in self.files
                for value in pq.read_table(file, columns=[name], use_threads=False)[name].to_pylist()
            ]
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"column {name}: cannot be read ({error})") from error

    def place(self, index: int) -> tuple[Path, int]:
        """File and row, from 0, of an index."""
        file = bisect_right(self._file_ends, index)
        return self.files[file], index - (self._file_ends[file - 1] if file else 0)

    def _locate(self, index: int) -> tuple[int, int]:
        group = bisect_right(self._ends, index)
        return group, index - (self._ends[group - 1] if group else 0)

    def _read(self, group: int) -> pa.Table:
        number, inside = self._groups[group]
        file = self.files[number]
        try:
            with pq.ParquetFile(file) as stream:
                return stream.read_row_group(inside, columns=self.columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise SampleError("unreadable parquet", f"row group {inside} cannot be read ({error})") from error


def parquet_images(value: Any, folder: Path, place: str, column: str) -> list[ImageFile | ImageBytes]:
    """The images of a row: none, one, or a list; each as bytes, as a path, or as Hugging Face's struct of both.

    Args:
        value: of the image column.
        folder: that paths are relative to.
        place: file and row, for messages.
        column: its name.

    Raises:
        SampleError: it is none of these, or a path without a file.
    """
    if value is None:
        return []
    images: list[ImageFile | ImageBytes] = []
    for number, item in enumerate(value if isinstance(value, list) else [value]):
        name = f"{place}, column {column}, image {number}"
        data, path = (item.get("bytes"), item.get("path")) if isinstance(item, dict) else (item, item)
        if isinstance(data, bytes):
            images.append(ImageBytes(name=name, data=data))
        elif isinstance(path, str):
            images.append(find_image(folder, path, column))
        else:
            raise SampleError("missing image", f"key {column}: image {number}: neither bytes nor a path")
    return images


def _footer(file: Path) -> bytes:
    """The end of a parquet file: its metadata, then their length in 4 bytes, then PAR1."""
    with file.open("rb") as stream:
        stream.seek(-8, os.SEEK_END)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, os.SEEK_END)
        return stream.read(length)


def _metadata(file: Path) -> tuple[pq.FileMetaData, list[str]]:
    try:
        with pq.ParquetFile(file) as stream:
            return stream.metadata, list(stream.schema_arrow.names)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable parquet file ({error})") from error
