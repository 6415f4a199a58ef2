"""From a place in the order of samples to the rows of one step on one data-parallel rank.

Everything here is a function of (data set, configuration, place), so any worker of any rank can make any step.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from data_pipeline.anyres import make_tiles, plan_tiles
from data_pipeline.config import DataConfig, ImageGeometry
from data_pipeline.conversation import render
from data_pipeline.decode import decode
from data_pipeline.manifest import Manifest
from data_pipeline.ordering import step_indices
from data_pipeline.packing import assign_rows, pack
from data_pipeline.row import EncodedSample, PackedRow, empty_row, make_row
from data_pipeline.shards import ON_BAD_SAMPLE, ShardReader


@dataclass(frozen=True, kw_only=True)
class LoaderState:
    """Where the next step begins. The same for every number of workers and of data-parallel ranks."""

    seed: int
    epoch: int
    """Counted from 0."""
    position: int
    """Samples of this epoch that were already given out."""
    manifest_hash: str
    """Identity of the data set."""


@dataclass(frozen=True, kw_only=True)
class SkippedSample:
    """A sample that was left out of its step (``on_bad_sample: skip``)."""

    id: str
    source: str
    reason: str
    """``too long`` or ``unreadable``."""
    message: str
    """Names shard, sample and what is wrong."""


@dataclass(kw_only=True)
class StepReport:
    """What became of the samples of a step. The reports of all data-parallel ranks add up to the whole step."""

    samples_by_source: Counter[str] = field(default_factory=Counter)
    """Samples in the rows, by data set."""
    skipped: list[SkippedSample] = field(default_factory=list)

    @property
    def skipped_by_reason(self) -> Counter[str]:
        """Number of samples left out, by reason."""
        return Counter(sample.reason for sample in self.skipped)


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One step's share of a data-parallel rank."""

    rows: list[PackedRow]
    """At least one; each is a microbatch. Ranks may have different numbers of rows."""
    state: LoaderState
    """The state AFTER this step: what a checkpoint stores once the step is done."""
    report: StepReport


class StepDataset(Dataset[StepBatch]):
    """``dataset[begin]`` is the step whose global batch begins at place ``begin`` of the endless order.

    The whole global batch is packed from the manifest's lengths, before anything is read; this rank then reads and
    decodes only its own rows.

    Raises:
        ValueError: the data set does not fit the tokenizer, template or shards; a sample exceeds the budget and
            ``on_bad_sample`` is ``error``; or no sample fits.
    """

    def __init__(
        self,
        data: DataConfig,
        geometry: ImageGeometry,
        manifest: Manifest,
        tokenizer: PreTrainedTokenizerFast,
        *,
        global_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
    ):
        assert 0 <= data_parallel_rank < data_parallel_size and global_batch_size > 0
        if data.on_bad_sample not in ON_BAD_SAMPLE:
            raise ValueError(f"data.on_bad_sample: {data.on_bad_sample!r} is not one of {', '.join(ON_BAD_SAMPLE)}")
        self.data, self.geometry, self.manifest, self.tokenizer = data, geometry, manifest, tokenizer
        self.global_batch_size = global_batch_size
        self.rank, self.num_ranks = data_parallel_rank, data_parallel_size
        self.reader = ShardReader(manifest)
        self.lengths = manifest.predicted_lengths(geometry)
        self._check_lengths()

    def __getitem__(self, begin: int) -> StepBatch:
        """Read, decode and pack; see the class."""
        report = StepReport()
        batch = step_indices(self.data.seed, len(self.manifest), begin, self.global_batch_size)
        fitting = [int(index) for index in batch if self._fits(int(index), report)]
        lengths = [int(self.lengths[index]) for index in fitting]
        packed = pack(lengths, self.data.max_sequence_length)
        costs = [sum(lengths[item] for item in row) for row in packed]
        rows = []
        for row in assign_rows(costs, self.num_ranks)[self.rank]:
            samples = [self._load(fitting[item], report) for item in packed[row]]
            if usable := [sample for sample in samples if sample is not None]:
                rows.append(make_row(usable, self.geometry))
            else:
                rows.append(self._filler())
        epoch, position = divmod(begin + self.global_batch_size, len(self.manifest))
        state = LoaderState(seed=self.data.seed, epoch=epoch, position=position, manifest_hash=self.manifest.hash)
        return StepBatch(rows=rows or [self._filler()], state=state, report=report)

    def _filler(self) -> PackedRow:
        assert isinstance(self.tokenizer.pad_token_id, int)
        return empty_row(self.tokenizer.pad_token_id, self.geometry)

    def _check_lengths(self) -> None:
        budget = self.data.max_sequence_length
        too_long = np.flatnonzero(self.lengths > budget)
        if len(too_long) == len(self.manifest):
            raise ValueError(f"{self.manifest.folder}: no sample fits into data.max_sequence_length={budget} tokens")
        if len(too_long) and self.data.on_bad_sample == "error":
            first = int(too_long[0])
            raise ValueError(f"{self._too_long(first)}; so are {len(too_long) - 1} others")

    def _too_long(self, index: int) -> str:
        budget = self.data.max_sequence_length
        place, length = self.manifest.describe(index), self.lengths[index]
        return f"{place}: {length} tokens, more than data.max_sequence_length={budget}"

    def _fits(self, index: int, report: StepReport) -> bool:
        fits = bool(self.lengths[index] <= self.data.max_sequence_length)
        if not fits and self.rank == 0:  # every rank sees this; one counts it
            self._skip(index, "too long", self._too_long(index), report)
        return fits

    def _skip(self, index: int, reason: str, message: str, report: StepReport) -> None:
        source = self.manifest.source_names[self.manifest.source[index]]
        sample = SkippedSample(id=self.manifest.id(index), source=source, reason=reason, message=message)
        report.skipped.append(sample)

    def _load(self, index: int, report: StepReport) -> EncodedSample | None:
        """The sample, or None where it cannot be read and bad samples are skipped."""
        try:
            sample = self._encode(index)
        except ValueError as error:
            place = self.manifest.describe(index)
            message = str(error) if str(error).startswith(place) else f"{place}: {error}"
            if self.data.on_bad_sample == "error":
                raise ValueError(message) from error
            self._skip(index, "unreadable", message, report)
            return None
        report.samples_by_source[self.manifest.source_names[self.manifest.source[index]]] += 1
        return sample

    def _encode(self, index: int) -> EncodedSample:
        stored = self.reader.read(index)
        encoded = render(stored.turns, self.tokenizer, self.data.chat_template)
        assert len(encoded.tokens) == self.manifest.text_tokens[index], "same tokenizer and template as in the manifest"
        tiles, grids, sizes = [], [], []
        for number, image in enumerate(stored.images):
            rgb = decode(image, f"{number}", self.geometry)
            height, width = rgb.shape[1:]
            plan = plan_tiles(height, width, self.geometry)
            tiles.append(make_tiles(rgb, plan, self.geometry))
            grids.append((plan.rows, plan.cols))
            sizes.append((height, width))
        return EncodedSample(
            id=self.manifest.id(index),
            key=int(self.manifest.keys[index]),
            tokens=torch.from_numpy(encoded.tokens),
            labels=torch.from_numpy(encoded.labels()),
            instruction=torch.from_numpy(encoded.instruction),
            tiles=tiles,
            grids=grids,
            image_sizes=sizes,
        )
