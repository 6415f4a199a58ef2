"""What one rank does in the tests of parallel layouts: a few real training steps, everything observable returned."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model

from data_pipeline.loading.steps import StepBatch, StepReport
from data_pipeline.row import PackedRow
from megatron_focus.checkpoint.state import Trainable, load_weights, save_weights
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.loading import dump_config
from megatron_focus.config.schema import (
    CheckpointConfig,
    ModelConfig,
    OptimizerSettings,
    ParallelConfig,
    RunConfig,
    TrainingConfig,
)
from megatron_focus.config.validation import validate
from megatron_focus.models.packed_layout import PAD
from megatron_focus.observability.metrics import StepRecorder
from megatron_focus.parallel.initialize import initialize
from megatron_focus.parallel.parameter_gather import gather_parameters
from megatron_focus.training.batch import StepFeeder
from megatron_focus.training.build import build_trainable
from megatron_focus.training.step import forward_backward, train_step
from megatron_focus.training.step_guard import StepGuard
from tests.distributed.assemble import Shard, local_shards
from tests.tiny import IMAGE_TOKEN, make_row, split_row, tiny_model

ROWS = [
    [[(100, 80)], [], [(60, 200), (57, 57)]],
    [[(30, 90)], [(112, 112)]],
    [[(200, 56)], [(90, 91)]],
    [[], []],
]
"""Images of the samples of each row: one or several images, none, a row of text alone."""


@dataclass
class RankResult:
    """What a rank saw."""

    losses: list[float] = field(default_factory=list)
    balances: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    totals: list[dict[str, float]] = field(default_factory=list)
    kept: dict[int, list[list[int]]] = field(default_factory=dict)
    """Row -> for each sample the positions left after all layers; on the last stage."""
    gradients: list[Shard] = field(default_factory=list)
    """Of the first step."""
    weights: list[Shard] = field(default_factory=list)
    """After the last step."""


class _Watcher(StepRecorder):
    """A recorder that also remembers which tokens were left."""

    def add(self, inputs: Any, result: Any) -> None:
        super().add(inputs, result)
        layout = result.layout
        real = layout.kind != PAD
        samples = [layout.position[(layout.sample == s) & real].tolist() for s in range(len(layout.seqlens))]
        self.seen = [*getattr(self, "seen", []), samples]


def configure(
    model: ModelConfig | None = None, parallel: dict | None = None, training: dict | None = None, **optimizer: Any
) -> RunConfig:
    """A run small enough for a test. Adam's epsilon is large, so that rounding is not blown up to a full step."""
    settings = {"lr": 1e-2, "adam_eps": 1e-2, "lr_warmup_fraction": 0.0, "lr_decay_style": "constant"} | optimizer
    return RunConfig(
        model=model or tiny_model(),
        parallel=ParallelConfig(**parallel or {}),
        optimizer=OptimizerSettings(**settings),
        training=TrainingConfig(**{"train_iters": 10, "global_batch_size": 8, "precision": "fp32"} | (training or {})),
        checkpoint=CheckpointConfig(),
    )


def start(config: RunConfig) -> tuple[torch.device, Trainable]:
    """Initialise this rank and build what is trained."""
    validate(config, int(torch.distributed.get_world_size()) if torch.distributed.is_initialized() else _world())
    device = initialize(config.parallel, config.training.seed)
    return device, build_trainable(config, IMAGE_TOKEN)


def _world() -> int:
    import os

    return int(os.environ["WORLD_SIZE"])


def save_initial_weights(config: RunConfig, folder: str) -> None:
    """A checkpoint of freshly initialised weights, from which every layout starts."""
    _, parts = start(config)
    save_weights(CheckpointStore(folder), parts.chunks, dump_config(config))


def run_steps(config: RunConfig, weights: str, row_images: list, steps: int, one_by_one: bool = False) -> RankResult:
    """Train ``steps`` steps on the rows, dealt to data-parallel ranks in turn; ``one_by_one``: a row a sample."""
    device, parts = start(config)
    store = CheckpointStore(weights).latest()
    assert store is not None
    load_weights(Path(store), parts)
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    mine = list(range(len(row_images)))[rank::size]
    rows = [[make_row(10 * step + i, row_images[i]) for i in mine] for step in range(steps)]
    if one_by_one:
        rows = [[sample for row in of_step for sample in split_row(row)] for of_step in rows]
    batches = iter([step_batch(of_step) for of_step in rows])
    feeder = StepFeeder(config, batches if StepFeeder.reads_data() else None, pad_token_id=249, device=device)
    result = RankResult()
    for step in range(steps):
        recorder = _Watcher(config.model, config.data.max_sequence_length)
        inputs = feeder.next_step(step)
        if step == 0 and not config.parallel.use_distributed_optimizer:
            # Gradients are read here; the step below computes them once more.
            forward_backward(
                parts.chunks, parts.optimizer, inputs, StepRecorder(config.model, config.data.max_sequence_length)
            )
            result.gradients = local_shards(parts.chunks, "main_grad")
        metrics = train_step(parts.chunks, parts.optimizer, parts.scheduler, inputs, recorder, device, StepGuard())
        result.losses.append(metrics.loss)
        result.balances.append(metrics.balance_loss)
        result.grad_norms.append(metrics.grad_norm)
        result.totals.append(metrics.totals)
        chunk = unwrap_model(parts.chunks[-1])
        if chunk.post_process and not one_by_one:
            chunks = len(parts.chunks)
            seen = recorder.seen if chunks == 1 else _of_last_chunk(recorder.seen, len(mine), chunks)
            result.kept |= {100 * step + row: seen[i] for i, row in enumerate(mine)}
    gather_parameters(parts.chunks)
    result.weights = local_shards(parts.chunks)
    return result


def _of_last_chunk(seen: list, rows: int, chunks: int) -> list:
    """Interleaved schedules run groups of PP rows per chunk; the last chunk's rows come last in each group."""
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    padded = -(-rows // stages) * stages
    last = []
    for group in range(padded // stages):
        first = group * stages * chunks + stages * (chunks - 1)
        last += seen[first : first + stages]
    return last


def step_batch(rows: list[PackedRow]) -> StepBatch:
    return StepBatch(
        rows=rows,
        report=StepReport(),
        wait_seconds=0.0,
    )
