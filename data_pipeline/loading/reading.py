"""From the samples of a row to the packed row: reading, tokens, tiles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_pipeline.anyres import plan_tiles
from data_pipeline.config import DataConfig, ImageGeometry
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.shard_reader import ShardReader
from data_pipeline.decoding.cpu import cpu_tiles
from data_pipeline.errors import SampleError
from data_pipeline.loading.steps import SkippedSample, StepReport
from data_pipeline.row import EncodedSample, PackedRow, make_row


@dataclass(frozen=True, kw_only=True)
class ReadSample:
    """A sample as it was read: its text is encoded, its images are not decoded."""

    index: int
    encoded: EncodedSample
    """Without tiles."""
    images: list[bytes]

    def named_images(self) -> list[tuple[str, bytes]]:
        """Name and bytes of every image, in order."""
        return [(f"{number} of {self.encoded.id}", data) for number, data in enumerate(self.images)]


@dataclass(kw_only=True)
class ReadRow:
    """The samples of a row that could be read."""

    samples: list[ReadSample] = field(default_factory=list)
    skipped: list[SkippedSample] = field(default_factory=list)

    def images(self) -> list[tuple[str, bytes]]:
        """Name and bytes of every image of the row, in order."""
        return [image for sample in self.samples for image in sample.named_images()]


@dataclass(frozen=True, kw_only=True)
class FinishedRow:
    """A row ready for training; None where none of its samples could be used."""

    row: PackedRow | None
    report: StepReport


class RowReader:
    """Reads rows; one in each reading process.

    Args:
        data: cache, and what to do about a bad sample.
        geometry: how images are tiled.
        manifest: the data set.
        renderer: writes the conversations.
    """

    def __init__(self, data: DataConfig, geometry: ImageGeometry, manifest: Manifest, renderer: Renderer):
        cache_bytes = None if data.cache_gib is None else int(data.cache_gib * 2**30)
        self.shards = ShardReader(manifest, data.cache_dir, cache_bytes)
        self.geometry, self.manifest, self.renderer = geometry, manifest, renderer
        self.skips = data.on_bad_sample == "skip"
        self.at: Callable[[int], None] = lambda index: None
        """Called with the index in the manifest of each sample before it is read, and before it is decoded."""

    def read(self, indices: Sequence[int]) -> ReadRow:
        """Read the samples and encode their texts.

        Raises:
            SampleError: one cannot be used, and bad samples are errors.
        """
        row = ReadRow()
        for index in indices:
            self.at(index)
            try:
                row.samples.append(self._read(index))
            except SampleError as error:
                row.skipped.append(self._skip(index, error))
        return row

    def finish(self, read: ReadRow, tiles: Sequence[Tensor | SampleError]) -> FinishedRow:
        """Put the samples back to back.

        Args:
            read: the row.
            tiles: for each of its images uint8 [t, 3, P, P], or why it could not be decoded.

        Raises:
            SampleError: an image cannot be used, and bad samples are errors.
        """
        report = StepReport(skipped=list(read.skipped))
        usable, begin = [], 0
        for sample in read.samples:
            own = tiles[begin : begin + len(sample.images)]
            begin += len(sample.images)
            try:
                usable.append(_with_tiles(sample.encoded, own))
            except SampleError as error:
                report.skipped.append(self._skip(sample.index, error))
                continue
            report.samples_by_source[self.manifest.source_names[self.manifest.source[sample.index]]] += 1
        return FinishedRow(row=make_row(usable, self.geometry) if usable else None, report=report)

    def read_and_decode(self, indices: Sequence[int]) -> FinishedRow:
        """Read a row and decode its images on the CPU.

        Raises:
            SampleError: a sample cannot be used, and bad samples are errors.
        """
        read = self.read(indices)
        tiles: list[Tensor | SampleError] = []
        for sample in read.samples:
            self.at(sample.index)
            tiles += [self._tiles(name, data) for name, data in sample.named_images()]
        return self.finish(read, tiles)

    def _tiles(self, name: str, data: bytes) -> Tensor | SampleError:
        try:
            return cpu_tiles(data, name, self.geometry)
        except SampleError as error:
            return error

    def _read(self, index: int) -> ReadSample:
        manifest = self.manifest
        stored = self.shards.read(index)
        encoded = self.renderer.render(stored.turns)
        assert len(encoded.tokens) == manifest.text_tokens[index], "same tokenizer and template as in the manifest"
        places = range(manifest.first_image[index], manifest.first_image[index + 1])
        sizes = [(int(manifest.heights[place]), int(manifest.widths[place])) for place in places]
        plans = [plan_tiles(height, width, self.geometry) for height, width in sizes]
        sample = EncodedSample(
            id=manifest.id(index),
            key=int(manifest.keys[index]),
            tokens=torch.from_numpy(encoded.tokens),
            labels=torch.from_numpy(encoded.labels()),
            user_turn=torch.from_numpy(encoded.user_turn),
            tiles=[],
            grids=[(plan.rows, plan.cols) for plan in plans],
            image_sizes=sizes,
        )
        return ReadSample(index=index, encoded=sample, images=stored.images)

    def _skip(self, index: int, error: SampleError) -> SkippedSample:
        """The entry of a sample left out.

        Raises:
            SampleError: the error with its place, where bad samples are errors.
        """
        place = self.manifest.describe(index)
        told = error if str(error).startswith(place) else error.at(place)
        if not self.skips:
            raise told from error
        source = self.manifest.source_names[self.manifest.source[index]]
        return SkippedSample(id=self.manifest.id(index), source=source, reason=told.reason, message=str(told))


def _with_tiles(sample: EncodedSample, tiles: Sequence[Tensor | SampleError]) -> EncodedSample:
    good = []
    for number, (image, (rows, cols)) in enumerate(zip(tiles, sample.grids, strict=True)):
        if isinstance(image, SampleError):
            raise image
        if len(image) != 1 + rows * cols:
            raise SampleError("changed size", f"image {number}: not of the size that the manifest says")
        good.append(image)
    return EncodedSample(
        id=sample.id,
        key=sample.key,
        tokens=sample.tokens,
        labels=sample.labels,
        user_turn=sample.user_turn,
        tiles=good,
        grids=sample.grids,
        image_sizes=sample.image_sizes,
    )
