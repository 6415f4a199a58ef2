"""The manifest of a prepared data set: where each sample lies and how long it is, without opening a shard.

Shapes: n samples; I images of all samples together.
"""

import hashlib
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_pipeline.anyres import visual_token_count
from data_pipeline.config import ImageGeometry
from data_pipeline.dataset.dataset_file import DATASET, named, read_dataset_file
from data_pipeline.dataset.storage import Storage

SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("shard", pa.string()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("image_offset", pa.list_(pa.int64())),
        ("image_size", pa.list_(pa.int64())),
        ("height", pa.list_(pa.int32())),
        ("width", pa.list_(pa.int32())),
        ("format", pa.list_(pa.string())),
        ("images", pa.int32()),
        ("text_tokens", pa.int32()),
        ("loss_tokens", pa.int32()),
        ("sha256", pa.binary(32)),
    ]
)
"""Columns of ``manifest.parquet``. Offsets and sizes are bytes in the shard; ``sha256`` is of json, then images."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The columns as arrays. Plain buffers, so that forked workers share them."""

    folder: str
    """Path or URL of the data set."""
    shard_folder: str
    """Path or URL that the shards' names are relative to; another data set's for a subset of it."""
    hash: str
    """SHA-256 of ``manifest.parquet``, the identity of the data set."""
    info: dict[str, Any]
    """What ``dataset.json`` says."""
    ids: pa.StringArray
    sha256: pa.FixedSizeBinaryArray
    keys: NDArray[np.int64]
    """int64 [n], see ``sample_key``."""
    source_names: list[str]
    source: NDArray[np.int32]
    """int32 [n], index into ``source_names``."""
    shard_names: list[str]
    shard: NDArray[np.int32]
    """int32 [n], index into ``shard_names``."""
    json_offset: NDArray[np.int64]
    json_size: NDArray[np.int64]
    text_tokens: NDArray[np.int64]
    """int64 [n], tokens with one for each image."""
    loss_tokens: NDArray[np.int64]
    first_image: NDArray[np.int64]
    """int64 [n + 1], the images of sample i are ``first_image[i]:first_image[i + 1]`` of the columns below."""
    image_offset: NDArray[np.int64]
    image_size: NDArray[np.int64]
    heights: NDArray[np.int64]
    """int64 [I], pixels."""
    widths: NDArray[np.int64]
    """int64 [I], pixels."""

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Read the manifest of a prepared data set.

        Args:
            folder: path or URL of what ``tools/prepare_data.py`` wrote.

        Raises:
            ValueError: it is not a prepared data set, is not finished, was written by another version, or was changed.
            OSError: the storage does not answer.
        """
        storage = Storage(str(folder))
        try:
            info = read_dataset_file(storage)
        except (FileNotFoundError, NotADirectoryError) as error:
            hint = f"is {storage.folder} a data set that tools/prepare_data.py has finished?"
            raise ValueError(f"{storage.place(DATASET)}: no such file; {hint}") from error
        file = storage.place("manifest.parquet")
        try:
            content = storage.read("manifest.parquet")
        except FileNotFoundError as error:
            raise ValueError(f"{file}: no such file; prepare the data set again") from error
        except OSError as error:
            raise named(file, error) from error
        digest = hashlib.sha256(content).hexdigest()
        if digest != info["manifest_sha256"]:
            raise ValueError(
                f"{file}: SHA-256 is {digest}, but dataset.json says {info['manifest_sha256']}: the file was changed"
            )
        table = pq.read_table(pa.BufferReader(content), schema=SCHEMA)
        source_names, source = _names(table["source"])
        shard_names, shard = _names(table["shard"])
        images = table["images"].to_numpy().astype(np.int64)
        return cls(
            folder=storage.folder,
            shard_folder=_join(storage.folder, info["shard_folder"]),
            hash=digest,
            info=info,
            ids=_array(table["id"]),
            sha256=_array(table["sha256"]),
            keys=table["key"].to_numpy(),
            source_names=source_names,
            source=source,
            shard_names=shard_names,
            shard=shard,
            json_offset=table["json_offset"].to_numpy(),
            json_size=table["json_size"].to_numpy(),
            text_tokens=table["text_tokens"].to_numpy().astype(np.int64),
            loss_tokens=table["loss_tokens"].to_numpy().astype(np.int64),
            first_image=np.concatenate([[0], np.cumsum(images)]),
            image_offset=_flat(table["image_offset"]),
            image_size=_flat(table["image_size"]),
            heights=_flat(table["height"]),
            widths=_flat(table["width"]),
        )

    def __len__(self) -> int:
        """n."""
        return len(self.keys)

    def id(self, index: int) -> str:
        """Id of a sample within its source."""
        return self.ids[index].as_py()

    def describe(self, index: int) -> str:
        """Where a sample is, for messages: shard, source and id."""
        shard = self.shard_names[self.shard[index]]
        return f"{self.shard_folder}/{shard}: sample {self.id(index)!r} of {self.source_names[self.source[index]]}"

    def visual_tokens(self, geometry: ImageGeometry) -> NDArray[np.int64]:
        """int64 [n], visual tokens of each sample before any sampling."""
        sizes, inverse = np.unique(self.heights << 32 | self.widths, return_inverse=True)  # each size is counted once
        heights, widths = (sizes >> 32).tolist(), (sizes & 0xFFFFFFFF).tolist()
        counts = [visual_token_count(h, w, geometry) for h, w in zip(heights, widths, strict=True)]
        total = np.zeros(len(self.heights) + 1, dtype=np.int64)
        np.cumsum(np.array(counts, dtype=np.int64)[inverse], out=total[1:])
        return total[self.first_image[1:]] - total[self.first_image[:-1]]

    def text_only_tokens(self) -> NDArray[np.int64]:
        """int64 [n], tokens of each sample that are not images; with its visual tokens they are its sequence."""
        return self.text_tokens - np.diff(self.first_image)


def _join(folder: str, relative: str) -> str:
    """``folder/relative`` without dots, for paths and URLs."""
    scheme, separator, path = folder.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(path, relative))


def _array(column: pa.ChunkedArray) -> Any:
    """One array of a column's chunks."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _names(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int32]]:
    encoded = pc.dictionary_encode(_array(column))
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int32)


def _flat(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return _array(column).flatten().to_numpy().astype(np.int64)
