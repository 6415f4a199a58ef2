"""The ``core_attention`` modules that the layer specs name: the one room for positions and attention backends.

Shapes: T tokens of a packed row, n query heads and g key groups of this rank, d head size; tiles attend as
[s, b, n, d].
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from megatron_focus.models.attention_backend import takes_packed_rows
from megatron_focus.models.packed_layout import PackedLayout

_VARLEN_TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # from torch 2.12 on


@dataclass
class PackedRowParams(PackedSeqParams):
    """Megatron's packed-sequence parameters, with what positions and host-side lengths add."""

    angles: Tensor | None = None
    """float32 [T, 1, 1, d], RoPE angles at the tokens' original positions."""
    seqlens: list[int] | None = None
    """Length of each sample, on the host, so that no layer reads ``cu_seqlens`` back from the device."""


def packed_row_params(layout: PackedLayout, angles: Tensor) -> PackedRowParams:
    """Parameters of the attention over one row; made once for every length the row has."""
    longest = max(layout.seqlens)
    return PackedRowParams(
        qkv_format="thd",
        cu_seqlens_q=layout.cu_seqlens,
        cu_seqlens_kv=layout.cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        angles=angles,
        seqlens=layout.seqlens,
    )


def rotate(tensor: Tensor, angles: Tensor, config: TransformerConfig, pg_collection: ProcessGroupCollection) -> Tensor:
    """Apply RoPE to [T, heads, d] at the given angles."""
    if config.apply_rope_fusion:
        # The "sbhd" form takes one angle a row as it is; the packed form would count positions from 0 again.
        return apply_rotary_pos_emb(tensor[:, None], angles, config, cp_group=pg_collection.cp)[:, 0]
    # Megatron-Core's unfused form, written with half of its passes over memory: the sine takes the sign of the half.
    cos, sin = angles[:, 0].cos(), angles[:, 0].sin()
    sin[..., : sin.shape[-1] // 2].neg_()
    first, second = tensor.chunk(2, dim=-1)
    swapped = torch.cat([second, first], dim=-1)
    return torch.addcmul(tensor * cos.to(tensor.dtype), swapped, sin.to(tensor.dtype))


class PackedAttention(nn.Module):
    """Causal attention within each sample of a packed row (local spec).

    On CUDA in half precision torch's variable-length FlashAttention takes the row as it is; elsewhere
    ``scaled_dot_product_attention`` takes it sample by sample.
    """

    def __init__(self, config: TransformerConfig, pg_collection: ProcessGroupCollection, **_: Any) -> None:
        super().__init__()
        self.config, self.pg_collection = config, pg_collection
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.attend = attend_row if takes_packed_rows(device, config.params_dtype) else attend_samples

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedRowParams | None = None,
    ) -> Tensor:
        """[T, n, d], [T, g, d], [T, g, d] -> [T, n * d]."""
        assert packed_seq_params is not None and packed_seq_params.angles is not None
        assert attention_mask is None and attention_bias is None
        query = rotate(query, packed_seq_params.angles, self.config, self.pg_collection)
        key = rotate(key, packed_seq_params.angles, self.config, self.pg_collection)
        return self.attend(query, key, value, packed_seq_params).flatten(1)


def attend_row(query: Tensor, key: Tensor, value: Tensor, row: PackedRowParams) -> Tensor:
    """[T, n, d], [T, g, d], [T, g, d] -> [T, n, d], by one kernel over all samples."""
    starts, longest = row.cu_seqlens_q, row.max_seqlen_q
    options: dict[str, Any] = {"window_size": (-1, 0)}  # any distance back, none ahead
    if _grouped(query, key) and _VARLEN_TAKES_GROUPS:
        options["enable_gqa"] = True
    elif _grouped(query, key):
        key, value = _for_each_head(query, key), _for_each_head(query, value)
    return varlen_attn(query, key, value, starts, starts, longest, longest, **options)  # type: ignore[return-value]


def attend_samples(query: Tensor, key: Tensor, value: Tensor, row: PackedRowParams) -> Tensor:
    """The same, by one call a sample: a block mask over the whole row would cost the square of the row's length."""
    assert row.seqlens is not None
    if query.is_cuda and _grouped(query, key):
        # On CUDA, groups of heads would lead to torch's unfused form, which holds all scores.
        key, value = _for_each_head(query, key), _for_each_head(query, value)
    # Each head's rows stand together in memory: the CPU kernel then reads them faster than the copies take.
    heads = (x.transpose(0, 1).contiguous() for x in (query, key, value))
    samples = zip(*(x.split(row.seqlens, dim=1) for x in heads), strict=True)
    outputs = [_causal(q, k, v).transpose(0, 1) for q, k, v in samples]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _for_each_head(query: Tensor, grouped: Tensor) -> Tensor:
    """[T, g, d] -> [T, n, d]."""
    return grouped.repeat_interleave(query.shape[1] // grouped.shape[1], dim=1)


def _grouped(query: Tensor, key: Tensor) -> bool:
    return query.shape[1] != key.shape[1]


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[n, s, d], [g, s, d], [g, s, d] -> [n, s, d]."""
    grouped = query.shape[0] != key.shape[0]
    return nn.functional.scaled_dot_product_attention(
        query[None], key[None], value[None], is_causal=True, enable_gqa=grouped
    )[0]


class TileAttention(nn.Module):
    """Full attention within each tile, for the vision tower (local spec)."""

    def __init__(self, config: TransformerConfig, **_: Any) -> None:
        super().__init__()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Three times [s, b, n, d] -> [s, b, n * d]."""
        assert attention_mask is None and attention_bias is None and packed_seq_params is None
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = nn.functional.scaled_dot_product_attention(query, key, value)
        return out.permute(2, 0, 1, 3).flatten(2)
