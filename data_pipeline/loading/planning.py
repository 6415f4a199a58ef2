"""Which samples a step holds, in which rows, on which data-parallel rank: known before anything is read.

Every rank plans the whole step and comes to the same result.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.anyres import plan_tiles, valid_cells
from data_pipeline.config import DataConfig, ImageGeometry
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.loading.cost import SampleCost
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
    costs: list[int]
    """What each row is expected to cost, see ``SampleCost``."""
    rows_of_rank: list[list[int]]
    """For each data-parallel rank the numbers of its rows; none where there are fewer rows than ranks."""
    unusable: list[int]
    """Samples left out of the step: too long, or without a visual token."""


@dataclass(frozen=True, kw_only=True)
class StepSamples:
    """The samples of a step that rows can hold, with what is expected of them.

    Shapes: n samples.
    """

    index: NDArray[np.int64]
    """int64 [n], into the manifest."""
    expected: NDArray[np.int64]
    """int64 [n], tokens in the language model."""
    worst: NDArray[np.int64]
    """int64 [n], tokens in the language model if nothing is compressed."""
    cost: NDArray[np.int64]
    """int64 [n], see ``SampleCost``."""
    unusable: NDArray[np.int64]
    """Samples left out, into the manifest."""


class StepPlanner:
    """Plans steps.

    What shares a row follows from the configuration, the data set and the expected share of visual tokens. The number
    of data-parallel ranks only decides who gets which row.

    Args:
        data: order and packing.
        geometry: how images are tiled, which decides how many visual tokens they have.
        manifest: the data set.
        global_batch_size: samples in a step.
        data_parallel_size: number of data-parallel ranks.
        cost: what is even over rows and ranks; the expected tokens if None.
        global_views: whether the model reads the tokens of an image's global view. If it does not, an image so
            elongated that no cell of its tiles shows it would have none.

    Raises:
        ValueError: ``rows_multiple_of`` is less than 1 or more than ``global_batch_size``; a weight names no source; a
            sample exceeds the budget or has an image without a token, and ``on_bad_sample`` is ``error``; no sample can
            be used; or an image has more pixels than ``geometry`` allows.
    """

    def __init__(
        self,
        data: DataConfig,
        geometry: ImageGeometry,
        manifest: Manifest,
        *,
        global_batch_size: int,
        data_parallel_size: int,
        cost: SampleCost | None = None,
        global_views: bool = True,
    ):
        if not 1 <= data.rows_multiple_of <= global_batch_size:
            raise ValueError(
                f"data.rows_multiple_of={data.rows_multiple_of}: must be 1 to training.global_batch_size="
                f"{global_batch_size}, as a row has at least one sample"
            )
        self.rows_multiple_of, self.cost = data.rows_multiple_of, cost or SampleCost()
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
        self.tiles, no_cell = tiles_of_samples(manifest, geometry)
        """int64 [n]."""
        self.no_token = no_cell & (not global_views)
        """bool [n], samples with an image that would have no visual token."""
        self.usable = (self.length <= self.budget) & ~self.no_token
        """bool [n]."""
        self._check_usable(data.on_bad_sample)

    def plan(self, place: int, kept_ratio: float) -> StepPlan:
        """The step whose global batch begins at ``place`` of the endless order.

        Args:
            place: samples of the order before this step.
            kept_ratio: share of the visual tokens that is expected to enter the language model.
        """
        samples = self.samples(place, kept_ratio)
        rows = self.rows(samples)
        row_of = np.empty(len(samples.index), dtype=np.int64)
        for number, row in enumerate(rows):
            row_of[row] = number
        costs, expected = (_sums(values, row_of, len(rows)) for values in (samples.cost, samples.expected))
        return StepPlan(
            rows=[samples.index[row].tolist() for row in rows],
            expected=expected,
            costs=costs,
            rows_of_rank=assign_rows(costs, self.num_ranks),
            unusable=samples.unusable.tolist(),
        )

    def rows(self, samples: StepSamples) -> list[list[int]]:
        """What shares a row, as places in ``samples``."""
        return pack(
            samples.cost, samples.expected, self.budget, samples.worst, self.worst_budget, self.rows_multiple_of
        )

    def samples(self, place: int, kept_ratio: float) -> StepSamples:
        """What the step holds; the arguments are those of ``plan``."""
        batch = self.order.take(place, self.global_batch_size)
        usable = self.usable[batch]
        batch, unusable = batch[usable], batch[~usable]
        visual = np.ceil(self.visual[batch] * min(kept_ratio, 1.0)).astype(np.int64)
        cost = self.cost(
            tiles=self.tiles[batch],
            text=self.text[batch],
            visual=visual,
            labels=self.manifest.loss_tokens[batch],
            keys=self.manifest.keys[batch],
            # The trainer's iteration, unless the batch size changed on resume: then other draws than the step's own are
            # expected, and rows are less even and nothing else.
            step=place // self.global_batch_size,
        )
        return StepSamples(
            index=batch, expected=self.text[batch] + visual, worst=self.length[batch], cost=cost, unusable=unusable
        )

    def unusable(self, index: int) -> SkippedSample:
        """What is said of a sample that is left out."""
        manifest = self.manifest
        if self.no_token[index]:
            reason = "no visual token"
            what = (
                "an image too elongated for the cells of its tiles has no token under "
                "model.vision_sampler.global_view=drop: use compress or keep, or leave it out"
            )
        else:
            reason = "too long"
            what = f"{self.length[index]} tokens, more than data.max_sequence_length={self.budget}"
        return SkippedSample(
            id=manifest.id(index),
            source=manifest.source_names[manifest.source[index]],
            reason=reason,
            message=f"{manifest.describe(index)}: {what}",
        )

    def _check_usable(self, on_bad_sample: str) -> None:
        shown = self.order.shown()
        unusable = np.flatnonzero(shown & ~self.usable)
        if len(unusable) == 0:
            return
        first = self.unusable(int(unusable[0]))
        if len(unusable) == shown.sum():
            raise ValueError(f"{self.manifest.folder}: no sample can be used; the first: {first.message}")
        if on_bad_sample == "error":
            raise ValueError(
                f"{first.message} ({len(unusable)} unusable samples in all); data.on_bad_sample=skip leaves them out"
            )

    def _check_sizes(self, geometry: ImageGeometry) -> None:
        pixels = self.manifest.heights * self.manifest.widths
        if pixels.max(initial=0) > geometry.max_image_pixels:
            image = int(pixels.argmax())
            sample = int(np.searchsorted(self.manifest.first_image, image, side="right")) - 1
            raise ValueError(
                f"{self.manifest.describe(sample)}: an image of {pixels[image]} pixels, more than "
                f"model.image.max_image_pixels={geometry.max_image_pixels}: raise that, or prepare the data set with it"
            )


def _sums(values: NDArray[np.int64], row_of: NDArray[np.int64], num_rows: int) -> list[int]:
    total = np.zeros(num_rows, dtype=np.int64)
    np.add.at(total, row_of, values)
    sums: list[int] = total.tolist()
    return sums


def tiles_of_samples(manifest: Manifest, geometry: ImageGeometry) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """int64 [n], tiles of all images of each sample, the global views among them; bool [n], whether one of its images
    is so elongated that no cell of its own tiles shows it."""
    sizes, inverse = np.unique(manifest.heights << 32 | manifest.widths, return_inverse=True)  # each is planned once
    counts = np.zeros((2, len(sizes)), dtype=np.int64)
    for number, size in enumerate(sizes.tolist()):
        height, width = size >> 32, size & 0xFFFFFFFF
        plan = plan_tiles(height, width, geometry)
        counts[:, number] = 1 + plan.rows * plan.cols, valid_cells(height, width, plan, geometry).is_empty
    total = np.zeros((2, len(manifest.heights) + 1), dtype=np.int64)
    np.cumsum(counts[:, inverse], axis=1, out=total[:, 1:])
    tiles, no_cell = total[:, manifest.first_image[1:]] - total[:, manifest.first_image[:-1]]
    return tiles, no_cell > 0
