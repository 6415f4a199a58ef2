"""Which samples a step holds, in which rows, on which data-parallel rank: known before anything is read.

Every rank plans the whole step and comes to the same result.
"""

from dataclasses import dataclass

import numpy as np

from data_pipeline.config import DataConfig, ImageGeometry
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.loading.ordering import OrderSettings, SampleOrder
from data_pipeline.loading.packing import assign_rows, pack
from data_pipeline.loading.steps import SkippedSample


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step."""

    rows: list[list[int]]
    """The samples of each row, as indices into the manifest."""
    expected: list[int]
    """Tokens that each row is expected to bring into the language model."""
    rows_of_rank: list[list[int]]
    """For each data-parallel rank the numbers of its rows; none where there are fewer rows than ranks."""
    too_long: list[int]
    """Samples left out of the step, because no row can hold them."""


class StepPlanner:
    """Plans steps.

    Args:
        data: order and packing.
        geometry: how images are tiled, which decides how many visual tokens they have.
        manifest: the data set.
        global_batch_size: samples in a step.
        data_parallel_size: number of data-parallel ranks.

    Raises:
        ValueError: a weight names no source; a sample exceeds the budget and ``on_bad_sample`` is ``error``; no sample
            fits; or an image has more pixels than ``geometry`` allows.
    """

    def __init__(
        self,
        data: DataConfig,
        geometry: ImageGeometry,
        manifest: Manifest,
        *,
        global_batch_size: int,
        data_parallel_size: int,
    ):
        self.manifest, self.global_batch_size, self.num_ranks = manifest, global_batch_size, data_parallel_size
        settings = OrderSettings(
            seed=data.seed, weights=dict(data.source_weights), shuffle=data.shuffle, window=data.shuffle_window
        )
        self.order = SampleOrder(manifest.source, manifest.source_names, manifest.shard, settings)
        self.budget = data.max_sequence_length
        self.worst_budget = round(data.max_sequence_length * data.worst_case_factor)
        self.text = manifest.text_only_tokens()
        self.visual = manifest.visual_tokens(geometry)
        self.length = self.text + self.visual
        """int64 [n], tokens of each sample if nothing is compressed."""
        self._check_sizes(geometry)
        self._check_lengths(data.on_bad_sample)

    def plan(self, place: int, kept_ratio: float) -> StepPlan:
        """The step whose global batch begins at ``place`` of the endless order.

        Args:
            place: samples of the order before this step.
            kept_ratio: share of the visual tokens that is expected to enter the language model.
        """
        batch = self.order.take(place, self.global_batch_size)
        length = self.length[batch]
        fits = length <= self.budget
        batch, worst, too_long = batch[fits], length[fits].tolist(), batch[~fits].tolist()
        expected = self.text[batch] + np.ceil(self.visual[batch] * min(kept_ratio, 1.0)).astype(np.int64)
        rows = pack(expected.tolist(), self.budget, worst, self.worst_budget)
        costs = [int(expected[row].sum()) for row in rows]
        return StepPlan(
            rows=[batch[row].tolist() for row in rows],
            expected=costs,
            rows_of_rank=assign_rows(costs, self.num_ranks),
            too_long=too_long,
        )

    def too_long(self, index: int) -> SkippedSample:
        """What is said of a sample that no row can hold."""
        manifest = self.manifest
        return SkippedSample(
            id=manifest.id(index),
            source=manifest.source_names[manifest.source[index]],
            reason="too long",
            message=f"{manifest.describe(index)}: {self.length[index]} tokens, more than "
            f"data.max_sequence_length={self.budget}",
        )

    def _check_lengths(self, on_bad_sample: str) -> None:
        shown = self.order.shown()
        too_long = np.flatnonzero(shown & (self.length > self.budget))
        if len(too_long) == shown.sum():
            folder = self.manifest.folder
            raise ValueError(f"{folder}: no sample fits into data.max_sequence_length={self.budget} tokens")
        if len(too_long) and on_bad_sample == "error":
            first = self.too_long(int(too_long[0])).message
            raise ValueError(f"{first} ({len(too_long)} such in all); data.on_bad_sample=skip leaves them out")

    def _check_sizes(self, geometry: ImageGeometry) -> None:
        pixels = self.manifest.heights * self.manifest.widths
        if pixels.max(initial=0) > geometry.max_image_pixels:
            image = int(pixels.argmax())
            sample = int(np.searchsorted(self.manifest.first_image, image, side="right")) - 1
            raise ValueError(
                f"{self.manifest.describe(sample)}: an image of {pixels[image]} pixels, more than "
                f"model.image.max_image_pixels={geometry.max_image_pixels}: raise that, or prepare the data set with it"
            )
