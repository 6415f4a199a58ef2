"""Stand-ins for attention and RoPE, as in ``kernels.py``. ``ATTENTION`` has what the fused ones were asked for."""

import enum
import itertools

import torch

from tests.transformer_engine_cpu.kernels import DEVICE, DType, stand_in

ATTENTION: set[tuple[str, str, int, int, int]] = set()
"""(layout, mask, heads, groups, head size)."""


class NVTE_Fused_Attn_Backend(enum.IntEnum):
    NVTE_No_Backend = -1
    NVTE_F16_max512_seqlen = 0
    NVTE_F16_arbitrary_seqlen = 1
    NVTE_FP8 = 2


@stand_in
def get_fused_attn_backend(
    is_training,
    q_dtype,
    kv_dtype,
    layout,
    bias,
    mask,
    softmax,
    dropout,
    heads,
    groups,
    max_q,
    max_kv,
    d_qk,
    d_v,
    left,
    right,
    return_max_logit,
    cuda_graph,
):
    """The rules of fused_attn.cpp (v2.11) that this project meets: cuDNN 9.7 or newer, no bias, no dropout."""
    capability = DEVICE["major"], DEVICE["minor"]
    refused = q_dtype not in (DType.kFloat16, DType.kBFloat16) or d_qk % 8 or d_v % 8 or d_qk > 128
    if _is_packed(layout):
        refused = refused or capability < (9, 0) or "PADDING" not in mask.name
    backend = NVTE_Fused_Attn_Backend
    return backend.NVTE_No_Backend if refused or capability < (8, 0) else backend.NVTE_F16_arbitrary_seqlen


def _is_packed(layout):
    return layout.name.removeprefix("NVTE_").startswith("T")


def _sdpa(q, k, v, causal, scale):
    """[s, n, d] -> [s, n, d]."""
    q, k, v = (x.float().transpose(0, 1)[None] for x in (q, k, v))
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])[0].transpose(0, 1)


def _attend(q, k, v, layout, mask, starts, scale):
    causal = "CAUSAL" in mask.name
    if not _is_packed(layout):
        return torch.stack([_sdpa(q[:, b], k[:, b], v[:, b], causal, scale) for b in range(q.shape[1])], 1)
    ends = starts.tolist()
    outputs = [_sdpa(q[a:b], k[a:b], v[a:b], causal, scale) for a, b in itertools.pairwise(ends) if b > a]
    return torch.cat([*outputs, q.new_zeros(q.shape[0] - ends[-1], *q.shape[1:]).float()])


@stand_in
def fused_attn_fwd(
    max_q,
    max_kv,
    is_training,
    scale,
    dropout,
    set_zero,
    layout,
    bias_type,
    mask,
    softmax,
    window,
    cu_q,
    cu_kv,
    q,
    k,
    v,
    fake_dtype,
    cu_q_padded,
    cu_kv_padded,
    *unused,
):
    assert cu_q.dtype == cu_kv.dtype == torch.int32 and not dropout
    ATTENTION.add((layout.name, mask.name, q.shape[-2], k.shape[-2], q.shape[-1]))
    if _is_packed(layout):
        assert max_q >= int(cu_q.diff().max()) and int(cu_q[-1]) <= q.shape[0]
        assert cu_q_padded is None or torch.equal(cu_q_padded, cu_q)
    out = _attend(q, k, v, layout, mask, cu_q, scale).to(q.dtype).contiguous()
    return [out, torch.zeros(1), torch.zeros(2)]


@stand_in
def fused_attn_bwd(
    max_q,
    max_kv,
    scale,
    dropout,
    set_zero,
    layout,
    bias_type,
    mask,
    softmax,
    window,
    deterministic,
    cu_q,
    cu_kv,
    q,
    k,
    v,
    o,
    do,
    *unused,
):
    with torch.enable_grad():
        leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
        out = _attend(*leaves, layout, mask, cu_q, scale)
        gradients = [g.to(q.dtype) for g in torch.autograd.grad(out, leaves, do.float())]
    # cuDNN writes the gradients in the layout of the inputs: interleaved where those were.
    if layout.name.endswith("H3D"):
        gradients = list(torch.stack(gradients, dim=-2).unbind(-2))
    return [*gradients, None, None]


@stand_in
def convert_thd_to_bshd(x, cu, b, longest):
    out = x.new_zeros(b, longest, *x.shape[1:])
    ends = cu.tolist()
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        out[i, : end - start] = x[start:end]
    return out


@stand_in
def convert_bshd_to_thd(x, cu, t):
    out = x.new_zeros(int(t), *x.shape[2:])
    ends = cu.tolist()
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        out[start:end] = x[i, : end - start]
    return out


def _rotated(t, freqs, sign):
    angles = freqs[:, :, :, : t.shape[-1]].float()
    first, second = t.float().chunk(2, -1)
    return (t.float() * angles.cos() + sign * torch.cat([-second, first], -1) * angles.sin()).to(t.dtype)


@stand_in
def fused_rope_forward(t, freqs, start, fmt, interleaved, cu, cp_size, cp_rank):
    assert fmt.name == "NVTE_SBHD" and not interleaved and start is None and cp_size == 1
    assert freqs.shape[0] >= t.shape[0] and freqs.shape[1] == freqs.shape[2] == 1 and freqs.dtype == torch.float32
    return _rotated(t, freqs[: t.shape[0]], 1)


@stand_in
def fused_rope_backward(grad, freqs, start, fmt, interleaved, cu, cp_size, cp_rank):
    return _rotated(grad, freqs[: grad.shape[0]], -1)
