"""Stand-ins in torch, float32 inside, for the kernels of Transformer Engine 2.11 that this project reaches.

Written from what its Python code passes and expects; arguments are named as there. ``CALLS`` counts them. Attention and
RoPE are in ``attention_kernels.py``.
"""

import enum
import functools
from collections import Counter

import torch

CALLS: Counter[str] = Counter()
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
