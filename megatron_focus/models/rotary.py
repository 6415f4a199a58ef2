"""RoPE at explicit positions.

Megatron-Core's own path counts positions from 0 and knows no gaps, so no ``rotary_pos_emb`` is passed to its layers;
``core_attention`` rotates instead, at the positions that the layout carries.
"""

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_focus.config.schema import LanguageConfig


class PositionRotary(nn.Module):
    """Angles of RoPE for given positions."""

    def __init__(
        self, language: LanguageConfig, config: TransformerConfig, pg_collection: ProcessGroupCollection
    ) -> None:
        super().__init__()
        assert config.kv_channels is not None
        mcore = RotaryEmbedding(
            config.kv_channels,
            rotary_percent=1.0,
            rotary_base=language.rotary_base,
            rope_scaling=language.rope_scaling,
            rope_scaling_factor=language.rope_scaling_factor,
            use_cpu_initialization=config.use_cpu_initialization,
            cp_group=pg_collection.cp,
        )
        self.inv_freq: Tensor = mcore.inv_freq

    def forward(self, position: Tensor) -> Tensor:
        """int [T] -> float32 [T, 1, 1, d], the angle of each channel (both halves alike)."""
        angles = torch.outer(position.float(), self.inv_freq)
        return torch.cat([angles, angles], dim=-1)[:, None, None]
