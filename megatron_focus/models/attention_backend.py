"""Which attention a run takes on its device: asked at start-up, and refused where it costs the square of a row.

cuDNN takes packed rows on sm90 and newer alone. On an A100, Transformer Engine therefore needs flash-attn; without it,
it would take its unfused form and say nothing.
"""

import os
from dataclasses import dataclass

import torch

from megatron_focus.config.schema import ModelConfig, RunConfig

_FLASH_HEAD_MULTIPLE, _FLASH_LARGEST_HEAD = 8, 256
_SWITCHES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


@dataclass(frozen=True, kw_only=True)
class AttentionUse:
    """One of the model's two attentions, as one rank computes it."""

    name: str
    heads: int
    groups: int
    head_size: int
    longest: int
    """Tokens of its longest sequence."""
    layout: str
    """Transformer Engine's name of how queries, keys and values lie in memory."""
    mask: str
    """Its name of the mask."""


def attention_uses(model: ModelConfig, tensor_parallel_size: int) -> list[AttentionUse]:
    """The language model's packed rows and the vision tower's tiles."""
    language, vision = model.language, model.vision
    return [
        AttentionUse(
            name="language model",
            heads=language.num_attention_heads // tensor_parallel_size,
            groups=max(1, language.num_query_groups // tensor_parallel_size),
            head_size=language.kv_channels or language.hidden_size // language.num_attention_heads,
            longest=language.max_position_embeddings,
            layout="thd_thd_thd",
            mask="padding_causal",
        ),
        AttentionUse(
            name="vision tower",
            heads=vision.num_attention_heads // tensor_parallel_size,
            groups=vision.num_attention_heads // tensor_parallel_size,
            head_size=vision.hidden_size // vision.num_attention_heads,
            longest=model.image.cells_per_side**2 + 1,
            layout="sbh3d",
            mask="no_mask",
        ),
    ]


def attention_of_run(config: RunConfig) -> list[str]:
    """``attention_in_use`` for a run on this device."""
    return attention_in_use(
        config.model,
        config.parallel.tensor_model_parallel_size,
        torch.bfloat16 if config.training.precision == "bf16" else torch.float32,
        deterministic=config.training.deterministic,
    )


def attention_in_use(
    model: ModelConfig, tensor_parallel_size: int, dtype: torch.dtype, *, deterministic: bool
) -> list[str]:
    """What the model's attentions run on here, a line each.

    Args:
        model: the model.
        tensor_parallel_size: ranks that share its heads.
        dtype: dtype of queries, keys and values.
        deterministic: the run must repeat itself bit for bit, which rules some kernels out.

    Raises:
        ValueError: one of them would hold a matrix of scores, whose size is the square of the sequence's length.
    """
    answer = _transformer_engine if model.transformer_impl == "transformer_engine" else _local
    return [f"{use.name}: {answer(use, dtype, deterministic)}" for use in attention_uses(model, tensor_parallel_size)]


def takes_packed_rows(device_type: str, dtype: torch.dtype) -> bool:
    """Whether torch's variable-length FlashAttention takes rows on a device: on CUDA in half precision."""
    return device_type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def _local(use: AttentionUse, dtype: torch.dtype, deterministic: bool) -> str:
    if not torch.cuda.is_available() or not takes_packed_rows("cuda", dtype) or use.mask == "no_mask":
        return "torch's scaled_dot_product_attention" + ("" if use.mask == "no_mask" else ", sample by sample")
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < (8, 0) or use.head_size % _FLASH_HEAD_MULTIPLE or use.head_size > _FLASH_LARGEST_HEAD:
        raise ValueError(
            f"the {use.name}'s head size {use.head_size} on sm{major}{minor}: torch's FlashAttention takes packed rows "
            f"with heads of a multiple of {_FLASH_HEAD_MULTIPLE} up to {_FLASH_LARGEST_HEAD} on sm80 and newer; set "
            "training.precision=fp32"
        )
    return "torch's variable-length FlashAttention"


def _transformer_engine(use: AttentionUse, dtype: torch.dtype, deterministic: bool) -> str:
    # Imported here: the local layers run without it.
    from transformer_engine.pytorch.attention.dot_product_attention.utils import (
        AttentionParams,
        FlashAttentionUtils,
        get_attention_backend,
    )

    # Megatron sets these itself, and ends with an assertion where they are set otherwise.
    switches = [f"{name}={os.environ[name]}" for name in _SWITCHES if os.environ.get(name, "1") != "1"]
    if switches:
        raise ValueError(f"the environment has {', '.join(switches)}, which Megatron-Core does not allow: unset it")
    parameters = AttentionParams(
        qkv_dtype=dtype,
        qkv_layout=use.layout,
        num_heads=use.heads,
        num_gqa_groups=use.groups,
        max_seqlen_q=use.longest,
        max_seqlen_kv=use.longest,
        head_dim_qk=use.head_size,
        head_dim_v=use.head_size,
        attn_mask_type=use.mask,
        core_attention_bias_shape=None,
        core_attention_bias_requires_grad=False,
        # As its layers decide for themselves.
        deterministic=deterministic or not int(os.environ.get("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1")),
    )
    flash, version, cudnn, *_ = get_attention_backend(parameters)
    if flash:
        return f"FlashAttention {version} through Transformer Engine"
    if cudnn:
        return "cuDNN through Transformer Engine"
    major, minor = torch.cuda.get_device_capability()
    found = FlashAttentionUtils.version if FlashAttentionUtils.is_installed else "not installed"
    raise ValueError(
        f"Transformer Engine has no fused attention for the {use.name} on sm{major}{minor} (flash-attn: {found}"
        f"; deterministic: {deterministic}): it would hold "
        f"{use.heads} matrices of {use.longest} x {use.longest} scores a sequence. "
        f"{_install_flash(FlashAttentionUtils.max_version)}, or set model.transformer_impl=local"
    )


def _install_flash(version: object) -> str:
    return f"Install flash-attn: python -m pip install --no-build-isolation 'flash-attn=={version}'"
