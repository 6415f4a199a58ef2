"""Reads a whole data set again and compares it with the hashes of its manifest.

The hashes cover the json and the images of each sample. The headers between them, which only other programs read, are
covered by the size of their shard alone.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.shard_reader import ShardReader
from data_pipeline.dataset.storage import Storage
from data_pipeline.decoding.cpu import decode
from data_pipeline.errors import SampleError
from data_pipeline.forked import run_forked


@dataclass(frozen=True, kw_only=True)
class BadEntry:
    """A sample that is not what was written, or a shard as a whole where ``id`` is None."""

    shard: str
    id: str | None
    source: str | None
    reason: str
    """A few fixed words: ``missing shard``, ``shard size``, ``size differs``, and those of ``SampleError``."""
    message: str
    """Names shard, source and id."""

    def line(self) -> str:
        """For a terminal."""
        return f"{self.reason}: {self.message}"

    def record(self) -> dict[str, str | None]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Shard:
    name: str
    size: int
    """Bytes that it should have."""
    samples: NDArray[np.int64]
    """Places in the manifest."""


@dataclass(frozen=True)
class _Done:
    """What a process tells after each sample or shard."""

    num_bytes: int
    num_samples: int
    bad: list[BadEntry]


def verify(
    manifest: Manifest,
    *,
    max_image_pixels: int,
    decode_images: bool = False,
    num_workers: int = 0,
    progress: bool = True,
) -> list[BadEntry]:
    """Read every sample of every shard.

    Shards of a URL are fetched whole, each into a temporary folder for as long as it is read.

    Args:
        manifest: the data set.
        max_image_pixels: an image with more is refused where images are decoded.
        decode_images: also decode every image and compare its size with the manifest.
        num_workers: processes; 0 for none beside this one.
        progress: show a bar on stderr.

    Returns:
        Every shard and every sample that is bad, in the order of the manifest; empty if all is well.

    Raises:
        ChildProcessError: a worker died; names the shard.
        OSError: the data set cannot be reached.
    """
    shards = _shards(manifest)
    bad: list[BadEntry] = []

    def work(shard: _Shard, report: Callable[[_Done], None]) -> None:
        for done in _verify_shard(manifest, shard, max_image_pixels if decode_images else None):
            report(done)

    with _Bar(manifest, progress) as bar:

        def report(done: _Done) -> None:
            bad.extend(done.bad)
            bar.show(done)

        if num_workers:
            run_forked(work, shards, num_workers, report, lambda: None)
        else:
            for shard in shards:
                work(shard, report)
    order = {shard.name: number for number, shard in enumerate(shards)}
    return sorted(bad, key=lambda entry: order[entry.shard])  # stable: samples of a shard come in their order


class _Bar(tqdm):
    """Counts bytes of json and images; samples and bad ones stand behind."""

    monitor_interval = 0  # no thread, as this process is going to fork

    def __init__(self, manifest: Manifest, show: bool):
        self._samples, self._bad = 0, 0
        super().__init__(
            total=int(manifest.json_size.sum() + manifest.image_size.sum()),
            desc="verifying",
            unit="B",
            unit_scale=True,
            smoothing=0,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,  # in a log file a line now and then is enough
            disable=not show,
        )

    def show(self, done: _Done) -> None:
        """Count what was done."""
        self._samples += done.num_samples
        self._bad += len(done.bad)
        self.set_postfix_str(f"{self._samples} samples, {self._bad} bad", refresh=False)
        self.update(done.num_bytes)


def _shards(manifest: Manifest) -> list[_Shard]:
    """In the order of ``dataset.json``, those without a sample as well."""
    by_shard = np.argsort(manifest.shard, kind="stable")
    ends = np.cumsum(np.bincount(manifest.shard, minlength=len(manifest.shard_names)))
    samples = dict(zip(manifest.shard_names, np.split(by_shard, ends[:-1]), strict=True))
    none = np.empty(0, dtype=np.int64)
    return [
        _Shard(name=name, size=size, samples=samples.get(name, none))
        for name, size in manifest.info["shard_bytes"].items()
    ]


def _verify_shard(manifest: Manifest, shard: _Shard, max_image_pixels: int | None) -> Iterator[_Done]:
    storage = Storage(manifest.shard_folder)
    place = storage.place(shard.name)
    try:
        size = storage.size(shard.name)
    except FileNotFoundError:
        for index in shard.samples.tolist():
            message = f"{manifest.describe(index)}: there is no such shard"
            yield _Done(_num_bytes(manifest, index), 1, [_entry(manifest, index, "missing shard", message)])
        if not len(shard.samples):
            yield _Done(0, 0, [_whole(shard, "missing shard", f"{place}: there is no such shard")])
        return
    if size != shard.size:
        message = f"{place}: has {size} bytes instead of {shard.size}"
        yield _Done(0, 0, [_whole(shard, "shard size", message)])
    # The reader would refuse a shard of another size altogether; which samples are in it is what we want to know.
    found = replace(manifest, info=manifest.info | {"shard_bytes": {shard.name: size}})
    with tempfile.TemporaryDirectory() as cache:
        reader = ShardReader(found, cache_dir=cache)  # used for URLs only
        for index in shard.samples.tolist():
            try:
                images = reader.read(index).images
                if max_image_pixels is not None:
                    _decode_all(manifest, index, images, max_image_pixels)
                bad = []
            except SampleError as error:
                bad = [_entry(manifest, index, error.reason, str(error))]
            yield _Done(_num_bytes(manifest, index), 1, bad)
        reader.close()


def _decode_all(manifest: Manifest, index: int, images: list[bytes], max_image_pixels: int) -> None:
    first = manifest.first_image[index]
    for number, data in enumerate(images):
        name = f"{number + 1} of {manifest.describe(index)}"
        height, width = decode(data, name, max_image_pixels).shape[1:]
        expected = (int(manifest.heights[first + number]), int(manifest.widths[first + number]))
        if (height, width) != expected:
            raise SampleError(
                "size differs", f"image {name}: {width}x{height} pixels, in the manifest {expected[1]}x{expected[0]}"
            )


def _entry(manifest: Manifest, index: int, reason: str, message: str) -> BadEntry:
    return BadEntry(
        shard=manifest.shard_names[manifest.shard[index]],
        id=manifest.id(index),
        source=manifest.source_names[manifest.source[index]],
        reason=reason,
        message=message,
    )


def _whole(shard: _Shard, reason: str, message: str) -> BadEntry:
    return BadEntry(shard=shard.name, id=None, source=None, reason=reason, message=message)


def _num_bytes(manifest: Manifest, index: int) -> int:
    images = manifest.image_size[manifest.first_image[index] : manifest.first_image[index + 1]]
    return int(manifest.json_size[index] + images.sum())
