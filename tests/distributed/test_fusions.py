"""Fused kernels compute what the plain ones do."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from megatron.core.tensor_parallel import layers

from tests.distributed.assemble import assemble
from tests.distributed.harness import run_ranks
from tests.distributed.workers import ROWS, configure, run_steps, save_initial_weights
from tests.tiny import tiny_model

SP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a model whose head is its embedding: that weight gets gradients from both."""
    folder = tmp_path_factory.mktemp("weights")
    run_ranks(save_initial_weights, 1, configure(tied()), str(folder))
    return str(folder)


def tied():
    return tiny_model(share_embeddings_and_output_weights=True)


def with_apexs_kernel(config, weights):
    """``fused_weight_gradient_mlp_cuda`` in torch: it adds a weight's gradient to the buffer."""
    calls = 0

    def add(inputs, gradient, buffer):
        nonlocal calls
        calls += 1
        buffer.add_(gradient.t().to(inputs.dtype) @ inputs)

    kernel = ModuleType("fused_weight_gradient_mlp_cuda")
    kernel.__spec__ = ModuleSpec(kernel.__name__, None)
    kernel.wgrad_gemm_accum_fp32 = add
    sys.modules[kernel.__name__] = layers.fused_weight_gradient_mlp_cuda = kernel
    layers._grad_accum_fusion_available = True
    return run_steps(config, weights, ROWS, 2), calls


@pytest.mark.parametrize(("world_size", "parallel"), [(2, SP2 | FULL), (2, PP2), (2, {"overlap_grad_reduce": True})])
def test_gradients_added_by_the_matrix_product(world_size, parallel, weights):
    expected = run_ranks(run_steps, world_size, configure(tied(), parallel), weights, ROWS, 2)
    config = configure(tied(), parallel | {"gradient_accumulation_fusion": True})
    got, calls = zip(*run_ranks(with_apexs_kernel, world_size, config, weights), strict=True)
    assert min(calls) > 100
    same(got, expected)


@pytest.mark.parametrize(("world_size", "parallel"), [(1, {}), (2, SP2)])
def test_megatrons_fused_cross_entropy(world_size, parallel, weights):
    plain, fused = (
        run_ranks(run_steps, world_size, configure(tied(), parallel | fusion, {"precision": "bf16"}), weights, ROWS, 2)
        for fusion in ({}, {"cross_entropy_loss_fusion": True})
    )
    same(fused, plain)


def same(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-6)
        assert one.grad_norms == pytest.approx(other.grad_norms, rel=1e-5)
    a, b = (assemble(result.weights for result in results) for results in (got, expected))
    for name in b:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: n + m)
