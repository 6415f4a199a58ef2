"""What a single rank does in the tests of equalities: build a model, run rows through it."""

import os

import torch

from megatron_focus.config.schema import ModelConfig, ParallelConfig
from megatron_focus.models.builder import build_model
from megatron_focus.models.focus_llava import FocusLLaVA, RowInputs
from megatron_focus.parallel.initialize import initialize
from megatron_focus.samplers.draws import TextDraws, draw
from megatron_focus.training.batch import row_plan


def one_rank_model(model: ModelConfig, image_token_id: int) -> FocusLLaVA:
    """The whole model on this rank."""
    os.environ.setdefault("RANK", "0")
    initialize(ParallelConfig(), seed=0)
    (chunk,) = build_model(model, ParallelConfig(), image_token_id=image_token_id, dtype=torch.float32)
    return chunk


def row_inputs(model: ModelConfig, row, *, training: bool, draws: TextDraws | None = None, step: int = 0) -> RowInputs:
    """A row with its plan and draws."""
    drawn = draw(model.text_sampler, row, seed=0, step=step, training=training)
    return RowInputs(row=row, plan=row_plan(model, row), draws=draws or drawn, loss_tokens=row.loss_tokens)
