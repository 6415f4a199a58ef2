"""Packed causal attention on Transformer Engine's fused kernels; imported by the Transformer-Engine spec alone."""

from typing import Any

from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_focus.models.core_attention import PackedRowParams, rotate


class PackedTEAttention(TEDotProductAttention):
    """``TEDotProductAttention`` over a packed row whose queries and keys are rotated here, at explicit positions."""

    def __init__(self, *, pg_collection: ProcessGroupCollection, **kwargs: Any) -> None:
        super().__init__(pg_collection=pg_collection, **kwargs)
        self.rotary_groups = pg_collection

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedRowParams | None = None,
    ) -> Tensor:
        """[T, n, d], [T, g, d], [T, g, d] -> [T, n * d]."""
        assert packed_seq_params is not None and packed_seq_params.angles is not None
        query = rotate(query, packed_seq_params.angles, self.config, self.rotary_groups)
        key = rotate(key, packed_seq_params.angles, self.config, self.rotary_groups)
        return super().forward(
            query, key, value, attention_mask, attn_mask_type, attention_bias, packed_seq_params=packed_seq_params
        )
