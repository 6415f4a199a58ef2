"""Reads any sample of a prepared data set by its place in the manifest."""

import hashlib
import json
from dataclasses import dataclass

from data_pipeline.conversations.conversation import Turn
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.storage import Storage
from data_pipeline.errors import SampleError


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """What the shards hold of one sample."""

    turns: list[Turn]
    images: list[bytes]


class ShardReader:
    """Reads any sample of a data set by its place in the manifest; safe to use after a fork.

    Args:
        manifest: of the data set.
        cache_dir: see ``Storage``.
        cache_bytes: see ``Storage``.

    Raises:
        ValueError: a local shard is missing or does not have its recorded size. Far shards are checked when read.
    """

    def __init__(self, manifest: Manifest, cache_dir: str | None = None, cache_bytes: int | None = None):
        self.manifest = manifest
        self.storage = Storage(manifest.shard_folder, cache_dir, cache_bytes)
        if self.storage.is_local:
            for name, expected in manifest.info["shard_bytes"].items():
                self._check_size(name, expected)

    def read(self, index: int) -> StoredSample:
        """The json and image bytes of a sample, compared with their hash.

        Raises:
            SampleError: naming shard and sample: the shard is missing or ends too early, or the bytes are not those
                that were written.
        """
        manifest = self.manifest
        image_places = range(manifest.first_image[index], manifest.first_image[index + 1])
        try:
            text = self._member(index, manifest.json_offset[index], manifest.json_size[index])
            images = [self._member(index, manifest.image_offset[i], manifest.image_size[i]) for i in image_places]
        except OSError as error:
            raise SampleError("unreadable shard", f"{manifest.describe(index)}: {error}") from error
        if sample_digest(text, images) != manifest.sha256[index].as_py():
            raise SampleError(
                "changed bytes", f"{manifest.describe(index)}: the bytes differ from those written (SHA-256)"
            )
        turns = [Turn(**turn) for turn in json.loads(text)["turns"]]
        return StoredSample(turns=turns, images=images)

    def close(self) -> None:
        """Close the shards."""
        self.storage.close()

    def _check_size(self, name: str, expected: int) -> None:
        file = self.storage.place(name)
        try:
            size = self.storage.size(name)
        except FileNotFoundError as error:
            raise ValueError(f"{file}: no such file, but the manifest lists it") from error
        if size != expected:
            raise ValueError(f"{file}: has {size} bytes instead of {expected}: the shard is truncated or changed")

    def _member(self, index: int, offset: int, size: int) -> bytes:
        name = self.manifest.shard_names[self.manifest.shard[index]]
        whole = self.manifest.info["shard_bytes"][name]
        data = self.storage.read_range(name, int(offset), int(size), whole)
        if len(data) != size:
            missing = size - len(data)
            raise SampleError(
                "truncated shard", f"{self.manifest.describe(index)}: the shard ends {missing} bytes too early"
            )
        return data


def sample_digest(text: bytes, images: list[bytes]) -> bytes:
    """SHA-256 of a sample: its json, then its images."""
    digest = hashlib.sha256(text)
    for image in images:
        digest.update(image)
    return digest.digest()
