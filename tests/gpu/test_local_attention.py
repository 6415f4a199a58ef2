"""On a GPU: the local layers' variable-length FlashAttention beside one call a sample, and its determinism."""

from itertools import accumulate

import pytest
import torch

from megatron_focus.models.core_attention import PackedRowParams, attend_row, attend_samples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SEQLENS = [700, 1, 33, 8000]


def outcome(attend, inputs, weight):
    starts = torch.tensor([0, *accumulate(SEQLENS)], dtype=torch.int32, device="cuda")
    longest = max(SEQLENS)
    row = PackedRowParams(
        qkv_format="thd",
        cu_seqlens_q=starts,
        cu_seqlens_kv=starts,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        seqlens=SEQLENS,
    )
    out = attend(*inputs, row)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


def states(dtype):
    torch.manual_seed(0)
    return [
        torch.randn(sum(SEQLENS), heads, 128, device="cuda", dtype=dtype, requires_grad=True) for heads in (8, 2, 2)
    ]


def test_equals_one_call_a_sample_in_fp32():
    inputs = states(torch.bfloat16)
    weight = torch.randn(sum(SEQLENS), 8, 128, device="cuda")
    exact = outcome(attend_samples, [x.detach().float().requires_grad_() for x in inputs], weight)
    for fused, reference in zip(outcome(attend_row, inputs, weight), exact, strict=True):
        # bf16 keeps 8 bits of each number; sums over a thousand keys average the errors out.
        assert (fused.float() - reference).norm() < 2e-2 * reference.norm()


def test_memory_is_linear_in_the_row():
    for attend, dtype in ((attend_row, torch.bfloat16), (attend_samples, torch.float32)):
        inputs = states(dtype)
        weight = torch.randn(sum(SEQLENS), 8, 128, device="cuda")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outcome(attend, inputs, weight)
        scores = 8 * sum(length**2 for length in SEQLENS) * inputs[0].element_size()
        assert torch.cuda.max_memory_allocated() - before < scores


def test_repeats_itself_where_asked_to():
    torch.use_deterministic_algorithms(True)
    try:
        inputs, weight = states(torch.bfloat16), torch.randn(sum(SEQLENS), 8, 128, device="cuda")
        first = outcome(attend_row, inputs, weight)
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(first, outcome(attend_row, inputs, weight), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
