"""Attention over packed rows in the local layers: torch's variable-length kernel, and one call a sample.

The kernel runs on GPUs alone (tests/gpu). Here its own shape rules are asked through fake tensors on "cuda", and its
numbers come from a stand-in that is written from its documentation.
"""

from itertools import accumulate

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from megatron_focus.models import core_attention
from megatron_focus.models.core_attention import PackedAttention, PackedRowParams, attend_row, attend_samples

SEQLENS = [5, 1, 9, 3]


def row(device: str = "cpu") -> PackedRowParams:
    starts = torch.tensor([0, *accumulate(SEQLENS)], dtype=torch.int32, device=device)
    longest = max(SEQLENS)
    return PackedRowParams(
        qkv_format="thd",
        cu_seqlens_q=starts,
        cu_seqlens_kv=starts,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        angles=torch.zeros(sum(SEQLENS), 1, 1, 16, device=device),
        seqlens=SEQLENS,
    )


def states(groups: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0) if device == "cpu" else None
    return [
        torch.randn(sum(SEQLENS), heads, 16, generator=generator, device=device, dtype=dtype, requires_grad=True)
        for heads in (4, groups, groups)
    ]


def config(dtype: torch.dtype) -> TransformerConfig:
    return TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=4, params_dtype=dtype)


def documented_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size, enable_gqa=False):
    """``torch.nn.attention.varlen.varlen_attn`` as documented, in plain matrix products."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and max_q == max_k == int(cu_seq_q.diff().max())
    assert isinstance(max_q, int) and window_size == (-1, 0)  # its documentation: "(-1, 0) for causal attention"
    assert enable_gqa == (query.shape[1] != key.shape[1])
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    out = torch.empty_like(query)
    for start, end in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
        q, k, v = (x[start:end].double().transpose(0, 1) for x in (query, key, value))
        scores = (q @ k.transpose(1, 2)) * query.shape[2] ** -0.5
        ahead = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
        out[start:end] = (scores.masked_fill(ahead, -torch.inf).softmax(-1) @ v).transpose(0, 1).to(out.dtype)
    return out


@pytest.mark.parametrize("takes_groups", [True, False])  # of torch 2.12 and newer, and of 2.11
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_the_row_at_once_equals_sample_by_sample(monkeypatch, groups, takes_groups):
    monkeypatch.setattr(core_attention, "varlen_attn", documented_varlen)
    monkeypatch.setattr(core_attention, "_VARLEN_TAKES_GROUPS", takes_groups)
    inputs = states(groups)
    once, each = attend_row(*inputs, row()), attend_samples(*inputs, row())
    torch.testing.assert_close(once, each)
    weight = torch.randn_like(once)
    for one, other in zip(
        torch.autograd.grad((once * weight).sum(), inputs),
        torch.autograd.grad((each * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [4, 2])
def test_torch_accepts_the_call(groups):
    """The real function, with its own rules for arguments."""
    # Another test of this process may have switched the CPU backend on, which takes "cuda" for the CPU.
    with FakeTensorMode(), torch.no_grad(), torch._C.DisableTorchFunction():
        inputs = states(groups, "cuda", torch.bfloat16)
        out = attend_row(*inputs, row("cuda"))
    assert out.shape == inputs[0].shape and out.dtype == torch.bfloat16 and out.device.type == "cuda"


class _AsIfOnCuda(TorchFunctionMode):
    """Tensors say that they are on a GPU; remembers whether attention was asked for groups of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped: list[bool] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == torch.Tensor.is_cuda.__get__:
            return True
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.grouped.append((kwargs or {}).get("enable_gqa", False))
        return func(*args, **(kwargs or {}))


def test_on_cuda_single_samples_never_ask_for_groups():
    """torch takes groups of heads in half precision alone: fp32 would get all scores at once."""
    inputs = states(2)
    expected = attend_samples(*inputs, row())
    with _AsIfOnCuda() as calls:
        out = attend_samples(*inputs, row())
    assert calls.grouped == [False] * len(SEQLENS)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("cuda", "dtype", "expected"),
    [
        (True, torch.bfloat16, attend_row),
        (True, torch.float32, attend_samples),
        (False, torch.bfloat16, attend_samples),
        (False, torch.float32, attend_samples),
    ],
)
def test_device_and_precision_decide(monkeypatch, cuda, dtype, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert PackedAttention(config(dtype), pg_collection=None).attend is expected
