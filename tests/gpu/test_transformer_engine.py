"""On a GPU: the Transformer-Engine layers beside the local ones, same weights, same rows, bf16."""

import importlib.util

import pytest
import torch

from megatron_focus.checkpoint.state import load_weights, save_weights
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.loading import dump_config
from megatron_focus.observability.metrics import StepRecorder
from megatron_focus.training.batch import StepFeeder
from megatron_focus.training.step import train_step
from megatron_focus.training.step_guard import StepGuard
from tests.distributed.harness import run_ranks
from tests.distributed.workers import ROWS, configure, start, step_batch
from tests.tiny import make_row, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("transformer_engine") is None, reason="needs Transformer Engine"),
]


def gpu_model(transformer_impl: str):
    """Head sizes that the fused kernels take."""
    model = tiny_model(hidden_size=256, ffn_hidden_size=512)
    model.vision.hidden_size, model.vision.ffn_hidden_size = 128, 256
    model.transformer_impl = transformer_impl
    return model


def three_steps(transformer_impl: str, folder: str, writes: bool):
    """Losses, gradient norms and dropped tokens of three training steps."""
    config = configure(gpu_model(transformer_impl), {}, {"precision": "bf16"}, lr=1e-3)
    device, parts = start(config)
    store = CheckpointStore(folder)
    if writes:
        save_weights(store, parts.chunks, dump_config(config))
    load_weights(store.path(0), parts)
    batches = iter(
        [step_batch([make_row(10 * step + i, images) for i, images in enumerate(ROWS)]) for step in range(3)]
    )
    feeder = StepFeeder(config, batches, pad_token_id=249, device=device)
    metrics = [
        train_step(
            parts.chunks,
            parts.optimizer,
            parts.scheduler,
            feeder.next_step(i),
            StepRecorder(config.model, config.data.max_sequence_length),
            device,
            StepGuard(),
        )
        for i in range(3)
    ]
    return [(m.loss, m.grad_norm, m.totals["dropped"]) for m in metrics]


def test_transformer_engine_beside_the_local_layers(tmp_path):
    local = run_ranks(three_steps, 1, "local", str(tmp_path), True)[0]
    fused = run_ranks(three_steps, 1, "transformer_engine", str(tmp_path), False)[0]
    print("local", local, "\ntransformer_engine", fused)
    for (loss, norm, dropped), (fused_loss, fused_norm, fused_dropped) in zip(local, fused, strict=True):
        # bf16 keeps 8 bits; near ties may drop another token.
        assert fused_loss == pytest.approx(loss, rel=0.02)
        assert fused_norm == pytest.approx(norm, rel=0.1)
        assert fused_dropped == pytest.approx(dropped, rel=0.1)
