"""From the loader of one rank to what every rank of its model replica needs for a step.

Only the first pipeline stage's first tensor-parallel rank reads data. Its tensor-parallel peers receive the rows; later
stages need nothing but the number of microbatches, because the layout rides with the hidden states.

Shapes: S samples, N text tokens, I images, t tiles, P tile side.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.distributed import ProcessGroup

from data_pipeline.anyres import visual_token_count
from data_pipeline.loading.steps import StepBatch, StepReport
from data_pipeline.row import PackedRow, empty_row
from megatron_focus.config.schema import ModelConfig, RunConfig
from megatron_focus.models.focus_llava import RowInputs
from megatron_focus.samplers.draws import draw, without_loss_on_history
from megatron_focus.samplers.window_plan import WindowPlan, plan_windows
from megatron_focus.training.balance_loss import row_balance_coefficient


@dataclass(kw_only=True)
class StepInputs:
    """One step as one rank sees it."""

    num_microbatches: int
    rows: list[RowInputs]
    """The microbatches; empty on ranks behind the first stage."""
    baseline_visual_tokens: int
    """Visual tokens LLaVA-NeXT would use for this rank's samples (m0)."""
    report: StepReport
    """What became of the samples; empty on ranks that do not read."""
    wait_seconds: float | None
    """How long the reading rank waited for its rows; None on the others."""


class StepFeeder:
    """Yields the steps of this rank's model replica."""

    def __init__(
        self,
        config: RunConfig,
        loader: Iterator[StepBatch] | None,
        *,
        pad_token_id: int,
        device: torch.device,
    ) -> None:
        """``loader`` is the step iterator on the reading rank and None on all others."""
        self.config, self.loader, self.device = config, loader, device
        self.pad_token_id = pad_token_id
        self.first_stage = parallel_state.is_pipeline_first_stage(ignore_virtual=True)
        self.tp_group = parallel_state.get_tensor_model_parallel_group()
        self.replica_group = parallel_state.get_model_parallel_group()
        self.dp_group = parallel_state.get_data_parallel_group()

    @staticmethod
    def reads_data() -> bool:
        """Whether this rank is the one of its replica that runs a loader."""
        first_stage = parallel_state.is_pipeline_first_stage(ignore_virtual=True)
        return first_stage and parallel_state.get_tensor_model_parallel_rank() == 0

    def next_step(self, step: int) -> StepInputs:
        """The inputs of training step ``step``, counted from 0."""
        batch = next(self.loader) if self.loader is not None else None
        rows = self._whole_groups(batch.rows) if batch is not None else []
        num_microbatches = self._from_reader(len(rows))
        shared = [
            broadcast_row(rows[i] if batch is not None else None, self.tp_group, self.device)
            for i in range(num_microbatches if self.first_stage else 0)
        ]
        inputs = self._row_inputs(shared, step) if self.first_stage else []
        return StepInputs(
            num_microbatches=num_microbatches,
            rows=inputs,
            baseline_visual_tokens=sum(
                visual_token_count(height, width, self.config.model.image)
                for row in shared
                for height, width in row.image_sizes.tolist()
            ),
            report=batch.report if batch is not None else StepReport(),
            wait_seconds=batch.wait_seconds if batch is not None else None,
        )

    def _whole_groups(self, rows: list[PackedRow]) -> list[PackedRow]:
        """Rows filled up to what the interleaved schedule can run: whole groups of one microbatch a stage."""
        group = 1
        if self.config.parallel.virtual_pipeline_model_parallel_size:
            group = self.config.parallel.pipeline_model_parallel_size
        filler = [empty_row(self.pad_token_id, self.config.model.image)] * (-len(rows) % group)
        return rows + filler

    def _from_reader(self, value: int) -> int:
        """A number the reading rank knows, on every rank of the replica."""
        shared = torch.tensor([value], dtype=torch.int64, device=self.device)
        if self.replica_group.size() > 1:
            source = torch.distributed.get_process_group_ranks(self.replica_group)[0]
            torch.distributed.broadcast(shared, src=source, group=self.replica_group)
        return int(shared)

    def _row_inputs(self, rows: list[PackedRow], step: int) -> list[RowInputs]:
        """Plans, draws and balance coefficients; the step's totals are known before anything is computed."""
        model, seed = self.config.model, self.config.training.seed
        draws = [draw(model.text_sampler, row, seed=seed, step=step, training=True) for row in rows]
        rows = [without_loss_on_history(model.text_sampler, row, d) for row, d in zip(rows, draws, strict=True)]
        plans = [row_plan(model, row) for row in rows]
        windows = sum(plan.num_windows for plan in plans)
        loss_tokens = sum(row.loss_tokens for row in rows)
        totals = torch.tensor([windows, loss_tokens], dtype=torch.int64, device=self.device)
        if self.dp_group.size() > 1:
            torch.distributed.all_reduce(totals, group=self.dp_group)
        step_windows, step_loss_tokens = totals.tolist()
        inputs = []
        for row, plan, drawn in zip(rows, plans, draws, strict=True):
            coefficient = row_balance_coefficient(
                model.vision_sampler, plan.num_windows, step_windows, step_loss_tokens
            )
            inputs.append(
                RowInputs(
                    row=on_device(row, self.device),
                    plan=plan.to(self.device),
                    draws=drawn.to(self.device),
                    balance_coefficient=coefficient,
                    loss_tokens=row.loss_tokens,
                )
            )
        return inputs


def row_plan(model: ModelConfig, row: PackedRow) -> WindowPlan:
    """The plan of a row's visual tokens, with the sampler or without it."""
    sampler = model.vision_sampler
    if not sampler.enabled:
        return plan_windows(row.image_sizes, model.image, window=1, scales=[], global_view="keep")
    return plan_windows(row.image_sizes, model.image, sampler.window, sampler.scales, sampler.global_view)


def on_device(row: PackedRow, device: torch.device) -> PackedRow:
    """The row on ``device``, except what the host alone reads."""
    names = ("tokens", "labels", "user_turn", "cu_seqlens", "tiles")
    return replace(row, **{name: getattr(row, name).to(device, non_blocking=True) for name in names})


def broadcast_row(row: PackedRow | None, group: ProcessGroup, device: torch.device) -> PackedRow:
    """A row from the first rank of ``group`` on all of its ranks, in host memory except for its tiles.

    Args:
        row: the row on the first rank, None elsewhere.
        group: the tensor-parallel group.
        device: device over which the group communicates.
    """
    if group.size() == 1:
        assert row is not None
        return row
    source = torch.distributed.get_process_group_ranks(group)[0]

    def shared(tensor: Tensor) -> Tensor:
        torch.distributed.broadcast(tensor, src=source, group=group)
        return tensor

    header = torch.zeros(5, dtype=torch.int64)
    if row is not None:
        tiles, _, side, _ = row.tiles.shape
        header = torch.tensor([len(row.tokens), row.num_samples, len(row.image_sizes), tiles, side])
    tokens, samples, images, tiles, side = shared(header.to(device)).tolist()
    lengths = dict.fromkeys(("tokens", "labels", "user_turn"), tokens)
    lengths |= {"cu_seqlens": samples + 1, "grids": 2 * images, "image_sizes": 2 * images, "sample_keys": samples}
    if row is not None:
        numbers = torch.cat([getattr(row, name).flatten().to(torch.int64) for name in lengths]).to(device)
        pixels = row.tiles.to(device)
    else:
        numbers = torch.empty(sum(lengths.values()), dtype=torch.int64, device=device)
        pixels = torch.empty(tiles, 3, side, side, dtype=torch.uint8, device=device)
    parts = dict(zip(lengths, shared(numbers).cpu().split(list(lengths.values())), strict=True))
    return PackedRow(
        tokens=parts["tokens"],
        labels=parts["labels"],
        user_turn=parts["user_turn"],
        cu_seqlens=parts["cu_seqlens"].to(torch.int32),
        tiles=shared(pixels.contiguous()),
        grids=parts["grids"].view(-1, 2).to(torch.int32),
        image_sizes=parts["image_sizes"].view(-1, 2).to(torch.int32),
        sample_keys=parts["sample_keys"],
        sample_ids=row.sample_ids if row is not None else [f"key {key:016x}" for key in parts["sample_keys"].tolist()],
    )
