"""Stand-ins in torch, float32 inside, for the kernels of Transformer Engine 2.11 that this project reaches.

Written from what its Python code passes and expects; arguments are named as there. ``CALLS`` counts them and
``ATTENTION`` has what every fused attention was asked for.
"""

import enum
import functools
import itertools
from collections import Counter

import torch

CALLS: Counter[str] = Counter()
ATTENTION: set[tuple[str, str, int, int, int]] = set()
"""(layout, mask, heads, groups, head size)."""
DEVICE = {"major": 9, "minor": 0, "cudnn": 91300}
"""What the stood-in GPU says of itself."""


def numbered(name: str, members: list[str]) -> type[enum.IntEnum]:
    return enum.IntEnum(name, {member: i for i, member in enumerate(members)})


DType = numbered(
    "DType",
    [
        "kByte",
        "kInt16",
        "kInt32",
        "kInt64",
        "kFloat32",
        "kFloat16",
        "kBFloat16",
        "kFloat8E4M3",
        "kFloat8E5M2",
        "kFloat8E8M0",
        "kFloat4E2M1",
    ],
)
TORCH = {DType.kFloat32: torch.float32, DType.kFloat16: torch.float16, DType.kBFloat16: torch.bfloat16}
STAND_INS = {}


def stand_in(function):
    @functools.wraps(function)
    def counted(*args, **kwargs):
        CALLS[function.__name__] += 1
        return function(*args, **kwargs)

    STAND_INS[function.__name__] = counted
    return counted


# --- linear -----------------------------------------------------------------------------------------------------------
@stand_in
def generic_gemm(
    A,
    transa,
    B,
    transb,
    out,
    quantizer,
    out_dtype,
    bias,
    bias_type,
    gelu,
    gelu_in,
    grad,
    workspace,
    workspace_size,
    accumulate,
    use_split_accumulator,
    *,
    comm_overlap=None,
    comm_type=None,
    extra_output=None,
    bulk_overlap=False,
    alpha=1.0,
    beta=None,
):
    """cuBLAS' column-major product, in row-major words: op(B) @ op(A)."""
    assert comm_overlap is None and not gelu and quantizer is None
    a, b = A.reshape(-1, A.shape[-1]).float(), B.reshape(-1, B.shape[-1]).float()
    product = (b.t() if transb else b) @ (a.t() if transa else a) * alpha
    bias_grad = None
    if grad and bias is not None:
        bias_grad = b.sum(0).to(B.dtype)
    elif not grad and bias is not None and bias.numel():
        product = product + bias.float()
    if out is not None:
        value = product.view(out.shape)
        out.copy_(out + value if accumulate else value)
        return out, bias_grad, None, extra_output
    dtype = TORCH[out_dtype] if out_dtype is not None else A.dtype
    shape = product.shape if transb else (*B.shape[:-1], product.shape[-1])
    return product.to(dtype).view(shape), bias_grad, None, extra_output


# --- norms ------------------------------------------------------------------------------------------------------------
def _gain(weight, zero_centered):
    return weight.float() + 1 if zero_centered else weight.float()


@stand_in
def layernorm_fwd(x, weight, bias, eps, out, quantizer, otype, sm_margin, zero_centered):
    assert quantizer is None
    x = x.float()
    mean = x.mean(-1)
    scale = (x.var(-1, unbiased=False) + eps).rsqrt()
    y = (x - mean[..., None]) * scale[..., None] * _gain(weight, zero_centered) + bias.float()
    return [y.to(TORCH[otype]), mean, scale]


@stand_in
def layernorm_bwd(dz, x, mu, rsigma, gamma, sm_margin, zero_centered):
    shape = x.shape
    x, dz = (t.reshape(-1, shape[-1]).float() for t in (x, dz))
    scale, dxhat = rsigma.view(-1, 1), dz * _gain(gamma, zero_centered)
    xhat = (x - mu.view(-1, 1)) * scale
    dx = scale * (dxhat - dxhat.mean(-1, keepdim=True) - xhat * (dxhat * xhat).mean(-1, keepdim=True))
    return [dx.view(shape).to(gamma.dtype), (dz * xhat).sum(0).to(gamma.dtype), dz.sum(0).to(gamma.dtype)]


@stand_in
def rmsnorm_fwd(x, weight, eps, out, quantizer, otype, sm_margin, zero_centered):
    assert quantizer is None
    x = x.float()
    scale = (x.square().mean(-1) + eps).rsqrt()
    return [(x * scale[..., None] * _gain(weight, zero_centered)).to(TORCH[otype]), None, scale]


@stand_in
def rmsnorm_bwd(dz, x, rsigma, gamma, sm_margin, zero_centered):
    shape = x.shape
    x, dz = (t.reshape(-1, shape[-1]).float() for t in (x, dz))
    scale, dxhat = rsigma.view(-1, 1), dz * _gain(gamma, zero_centered)
    xhat = x * scale
    dx = scale * (dxhat - xhat * (dxhat * xhat).mean(-1, keepdim=True))
    return [dx.view(shape).to(gamma.dtype), (dz * xhat).sum(0).to(gamma.dtype)]


# --- attention --------------------------------------------------------------------------------------------------------
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


# --- optimizer --------------------------------------------------------------------------------------------------------
@stand_in
def multi_tensor_scale(chunk, noop, lists, scale):
    for a, b in zip(*lists, strict=True):
        b.copy_(a * scale)


@stand_in
def multi_tensor_l2norm(chunk, noop, lists, per_tensor=False):
    norms = torch.stack([x.float().norm() for x in lists[0]]) if lists[0] else torch.zeros(1)
    return norms.norm().view(1), norms if per_tensor else torch.zeros(0)


@stand_in
def multi_tensor_adam(chunk, noop, lists, lr, b1, b2, eps, step, mode, correction, decay):
    assert mode == 1 and correction  # AdamW
    for gradient, parameter, mean, square, *master in zip(*lists, strict=True):
        of_weights = master[0] if master else parameter
        gradient = gradient.float()
        mean.copy_(b1 * mean + (1 - b1) * gradient)
        square.copy_(b2 * square + (1 - b2) * gradient * gradient)
        update = (mean / (1 - b1**step)) / ((square / (1 - b2**step)).sqrt() + eps)
        new = of_weights.float() - lr * (update + decay * of_weights.float())
        of_weights.copy_(new)
        parameter.copy_(new)
