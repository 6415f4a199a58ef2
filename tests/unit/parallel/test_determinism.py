"""``training.deterministic``: what it sets, and that a step asks CUDA for nothing that torch then refuses."""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_focus.parallel.determinism import require_determinism
from megatron_focus.training.batch import StepFeeder
from megatron_focus.training.step import forward_backward
from tests.distributed.harness import run_ranks
from tests.distributed.workers import ROWS, StepRecorder, configure, start, step_batch
from tests.tiny import make_row, tiny_model

SET = {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}


@pytest.fixture
def torch_as_before():
    yield
    torch.use_deterministic_algorithms(False)


def test_sets_what_each_library_reads(torch_as_before):
    environment = {"HOME": "/h"}
    require_determinism(environment)
    assert environment == {"HOME": "/h", **SET}
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark


def test_keeps_what_will_do(torch_as_before):
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "NCCL_ALGO": "^NVLS"}
    require_determinism(environment)
    assert environment == {**SET, "CUBLAS_WORKSPACE_CONFIG": ":16:8", "NCCL_ALGO": "^NVLS"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1"), ("CUBLAS_WORKSPACE_CONFIG", ":0:0"), ("NCCL_ALGO", "NVLS")],
)
def test_an_environment_that_says_otherwise_is_named(name, value, torch_as_before):
    with pytest.raises(ValueError, match=f"environment has {name}={value}: unset it, or use one of "):
        require_determinism({name: value})
    assert not torch.are_deterministic_algorithms_enabled()


_REFUSED = {
    "put_",
    "histc",
    "median",
    "nanmedian",
    "kthvalue",
    "nll_loss2d_forward",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward",
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "max_unpool2d",
    "max_unpool3d",
    "_ctc_loss_backward",
    "_embedding_bag_dense_backward",
}


class _RefusedOnCuda(TorchDispatchMode):
    """What ``torch.use_deterministic_algorithms`` documents to raise on CUDA, forward and backward."""

    def __init__(self):
        super().__init__()
        self.refused, self.seen = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen.add(name)
        of_floats = name in ("cumsum", "cumsum_") and args[0].is_floating_point()
        weighted = name == "bincount" and ((len(args) > 1 and args[1] is not None) or (kwargs or {}).get("weights"))
        if name in _REFUSED or of_floats or weighted:
            self.refused.add(name)
        return func(*args, **(kwargs or {}))


def deterministic_step():
    """Operations of one step that torch would refuse, those that it saw, the switches of Megatron's modules."""
    require_determinism()
    config = configure(tiny_model(), {"use_distributed_optimizer": False}, {"deterministic": True})
    device, parts = start(config)
    batches = iter([step_batch([make_row(i, images) for i, images in enumerate(ROWS)])])
    inputs = StepFeeder(config, batches, pad_token_id=249, device=device).next_step(0)
    recorder = StepRecorder(config.model, config.data.max_sequence_length)
    with _RefusedOnCuda() as watched:
        forward_backward(parts.chunks, parts.optimizer, inputs, recorder)
    switches = {m.deterministic_mode for m in parts.chunks[0].modules() if hasattr(m, "deterministic_mode")}
    return watched.refused, watched.seen, switches, {name: os.environ[name] for name in SET}


def test_a_step_needs_nothing_that_torch_refuses():
    [(refused, seen, switches, environment)] = run_ranks(deterministic_step, 1)
    assert refused == set()
    assert {"bmm", "mm", "index_put", "convolution_backward"} & seen  # forward and backward were both seen
    assert "convolution_backward" in seen
    assert switches == {True} and environment == SET
