"""The loader: consecutive steps for one data-parallel rank, planned and read ahead, resumed exactly."""

import time
import warnings
from collections import deque
from dataclasses import asdict, dataclass, field
from itertools import islice

import torch

from data_pipeline.config import DataConfig, ImageGeometry
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import load_tokenizer
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.decoding.dali import DaliTiler
from data_pipeline.loading.cost import SampleCost
from data_pipeline.loading.estimate import KeptEstimate
from data_pipeline.loading.planning import StepPlan, StepPlanner
from data_pipeline.loading.reading import FinishedRow, ReadRow, RowReader
from data_pipeline.loading.reading_processes import PendingRow, ReadingProcesses
from data_pipeline.loading.steps import LoaderState, StepBatch, StepReport
from data_pipeline.row import PackedRow, empty_row


@dataclass
class _PlannedStep:
    """A step on its way: planned, then its rows begun one by one."""

    plan: StepPlan
    waiting: list[list[int]]
    """This rank's rows that nobody has begun to read."""
    pending: list[PendingRow] = field(default_factory=list)


class StepLoader:
    """Gives the ``StepBatch`` of one step after another, without end.

    Two loaders with the same data set, configuration and state give equal steps. The number of workers changes nothing,
    and the number of data-parallel ranks only changes who gets which row.

        batch = loader.next_step()
        ...                                             # train on it
        state = loader.step_done(kept, baseline)        # what a checkpoint stores

    Args:
        data: what to read and how to order, pack and decode it.
        geometry: how images are tiled.
        global_batch_size: samples in a step, over all data-parallel ranks.
        data_parallel_rank: this rank. Not the world rank: ranks that share a model replica share its rows.
        data_parallel_size: number of data-parallel ranks.
        state: where to begin; the beginning of the first epoch if None.
        device: where the rows will be used.
        cost: by what rows and ranks are evened out; the expected tokens if None.
        global_views: see ``StepPlanner``.

    Raises:
        ValueError: naming the configuration key or the file: something is missing, the data set was prepared with
            another tokenizer or template, a sample is too long, or ``state`` belongs to another data set or order.
    """

    def __init__(
        self,
        data: DataConfig,
        geometry: ImageGeometry,
        *,
        global_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        state: LoaderState | None = None,
        device: torch.device | None = None,
        cost: SampleCost | None = None,
        global_views: bool = True,
    ):
        assert 0 <= data_parallel_rank < data_parallel_size and global_batch_size > 0
        if data.path is None or data.tokenizer is None:
            raise ValueError(f"data.path and data.tokenizer are needed, not {data.path!r} and {data.tokenizer!r}")
        device = device or torch.device("cpu")
        self.data, self.geometry, self.rank = data, geometry, data_parallel_rank
        self.manifest = Manifest.load(data.path)
        self.tokenizer = load_tokenizer(data.tokenizer)
        renderer = Renderer(self.tokenizer, data.chat_template)
        _check_text(data, self.manifest, renderer)
        self.planner = StepPlanner(
            data,
            geometry,
            self.manifest,
            global_batch_size=global_batch_size,
            data_parallel_size=data_parallel_size,
            cost=cost,
            global_views=global_views,
        )
        self._place = self._begin(state)
        running = data.packing_estimate == "running"
        self.estimate = KeptEstimate(data.prefetch_steps, state.kept_ratios if state else (), running=running)
        self.reader = RowReader(data, geometry, self.manifest, renderer)
        on_cpu = data.decoder == "cpu"
        self.decoder = data.decoder if on_cpu else f"{data.decoder} on {device.type}"
        if state is not None and state.decoder != self.decoder:
            warnings.warn(
                f"images were decoded with {state.decoder} so far, with {self.decoder} from now on: pixels differ",
                stacklevel=2,
            )
        pin_memory = on_cpu and device.type == "cuda"
        # Before DALI, whose threads a fork would lose.
        self.processes = ReadingProcesses(self.reader, data.num_workers, decodes=on_cpu, pin_memory=pin_memory)
        self.tiler = None if on_cpu else _tiler(data, geometry, device)
        self._steps: deque[_PlannedStep] = deque()
        self._decoding: deque[list[ReadRow]] = deque()
        self._given = False

    @property
    def state(self) -> LoaderState:
        """Where the next step begins."""
        epoch, position = divmod(self._place, self.planner.order.samples_per_epoch)
        return LoaderState(
            epoch=epoch,
            position=position,
            order=asdict(self.planner.order.settings),
            manifest_hash=self.manifest.hash,
            kept_ratios=list(self.estimate.ratios),
            decoder=self.decoder,
        )

    def next_step(self) -> StepBatch:
        """Wait for the next step.

        Raises:
            SampleError: a sample cannot be used and ``data.on_bad_sample`` is ``error``; names shard, sample, reason.
            RuntimeError: a reading process died.
        """
        assert not self._given, "step_done comes first"
        started = time.perf_counter()
        self._plan_ahead()
        step = self._steps[0]
        finished = self._decoded() if self.tiler is not None else self._collect(step)
        report = StepReport()
        if self.rank == 0:  # every rank sees these; one counts them
            report.skipped += [self.planner.unusable(index) for index in step.plan.unusable]
        rows = []
        for row in finished:
            assert isinstance(row, FinishedRow)
            rows.append(row.row or self._filler())
            report.samples_by_source += row.report.samples_by_source
            report.skipped += row.report.skipped
        self._steps.popleft()
        self._given = True
        waited = time.perf_counter() - started
        return StepBatch(rows=rows or [self._filler()], report=report, wait_seconds=waited)

    def step_done(self, kept: int, baseline: int) -> LoaderState:
        """Count the step that was given last as done; returns the state after it.

        Args:
            kept: visual tokens that entered the language model in this step, over all ranks.
            baseline: visual tokens that LLaVA-NeXT would have used.
        """
        assert self._given, "next_step comes first"
        self._given = False
        self._place += self.planner.global_batch_size
        self.estimate.measured(kept, baseline)
        return self.state

    def close(self) -> None:
        """End the reading processes and close all files."""
        self.processes.close()
        self.reader.shards.close()
        if self.tiler is not None:
            self.tiler.close()

    def _begin(self, state: LoaderState | None) -> int:
        if state is None:
            return 0
        _check_state(state, self.planner, self.manifest)
        return state.epoch * self.planner.order.samples_per_epoch + state.position

    def _plan_ahead(self) -> None:
        """Plan up to the last step whose packing is settled, and begin to read."""
        for number in range(len(self._steps), len(self.estimate.ratios)):
            place = self._place + number * self.planner.global_batch_size
            plan = self.planner.plan(place, self.estimate.ratios[number])
            self._steps.append(_PlannedStep(plan, [plan.rows[row] for row in plan.rows_of_rank[self.rank]]))
        self._read_ahead()

    def _read_ahead(self) -> None:
        """Keep the rows of a step under way, and at least two a worker, so that none idles while the model trains."""
        if self.processes.num_workers == 0:
            return
        longest = max(len(step.plan.rows_of_rank[self.rank]) for step in islice(self._steps, 2))
        room = max(2 * self.processes.num_workers, longest) - sum(len(step.pending) for step in self._steps)
        for step in self._steps:
            while step.waiting and room > 0:
                step.pending.append(self.processes.submit(step.waiting.pop(0)))
                room -= 1

    def _collect(self, step: _PlannedStep) -> list[ReadRow | FinishedRow]:
        """This rank's rows of a step, in order."""
        rows = []
        while step.pending or step.waiting:
            if not step.pending:  # without workers
                step.pending.append(self.processes.submit(step.waiting.pop(0)))
            rows.append(step.pending.pop(0).result())
            self._read_ahead()
        return rows

    def _decoded(self) -> list[ReadRow | FinishedRow]:
        """The rows of the first step from DALI, which then begins with those of the second: it decodes while the model
        trains on the first."""
        assert self.tiler is not None
        if not self._decoding:
            self._decode(self._steps[0])
        rows = self._decoding.popleft()
        tiles = self.tiler.fetch()
        if len(self._steps) > 1:
            self._decode(self._steps[1])
        finished: list[ReadRow | FinishedRow] = []
        for row in rows:
            count = sum(len(sample.images) for sample in row.samples)
            finished.append(self.reader.finish(row, tiles[:count]))
            tiles = tiles[count:]
        return finished

    def _decode(self, step: _PlannedStep) -> None:
        assert self.tiler is not None
        rows = [row for row in self._collect(step) if isinstance(row, ReadRow)]
        self.tiler.submit([image for row in rows for image in row.images()])
        self._decoding.append(rows)

    def _filler(self) -> PackedRow:
        assert isinstance(self.tokenizer.pad_token_id, int)
        return empty_row(self.tokenizer.pad_token_id, self.geometry)


def _tiler(data: DataConfig, geometry: ImageGeometry, device: torch.device) -> DaliTiler:
    on_gpu = device.type == "cuda"
    return DaliTiler(
        geometry,
        max_images=64,
        device="gpu" if on_gpu else "cpu",
        num_threads=max(data.num_workers, 1),
        device_id=torch.cuda.current_device() if on_gpu else None,
    )


def _check_text(data: DataConfig, manifest: Manifest, renderer: Renderer) -> None:
    file = f"{manifest.folder}/dataset.json"
    if manifest.info["chat_template"] != data.chat_template:
        raise ValueError(
            f"{file}: prepared with chat_template {manifest.info['chat_template']!r}, but data.chat_template is "
            f"{data.chat_template!r}; prepare the data set again"
        )
    if manifest.info["rendering_sha256"] != renderer.hash:
        raise ValueError(
            f"{file}: prepared with another tokenizer or chat template than data.tokenizer={data.tokenizer} "
            f"(rendering_sha256 is {manifest.info['rendering_sha256']}, here {renderer.hash}); prepare it again"
        )


def _check_state(state: LoaderState, planner: StepPlanner, manifest: Manifest) -> None:
    if state.manifest_hash != manifest.hash:
        raise ValueError(
            f"{manifest.folder}: the data set is not the one of the checkpoint (its manifest has SHA-256 "
            f"{manifest.hash}, the checkpoint's {state.manifest_hash})"
        )
    order = planner.order
    if changes := order.settings.changes(state.order):
        raise ValueError(
            f"data: the order of samples is not the one of the checkpoint ({'; '.join(changes)}): change it back"
        )
    if state.epoch < 0 or not 0 <= state.position < order.samples_per_epoch:
        raise ValueError(
            f"loader state: epoch {state.epoch}, position {state.position} of {order.samples_per_epoch} samples"
        )
