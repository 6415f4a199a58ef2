"""Layer specs: the same layers from Megatron-Core's own modules (``local``) or from Transformer Engine."""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_focus.models.core_attention import PackedAttention, TileAttention
from megatron_focus.parallel.megatron_versions import mlp_spec


@dataclass(frozen=True, kw_only=True)
class LayerSpecs:
    """What the builder needs of an implementation."""

    vision_layer: ModuleSpec
    language_layer: ModuleSpec
    norm: Any
    """Module of a norm that stands alone (final norm, the tower's pre-norm)."""
    projector: MLPSubmodules


class TorchNorm:
    """LayerNorm or RMSNorm of torch, marked for Megatron's gradient reduction under sequence parallelism."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> torch.nn.Module:  # type: ignore[misc]
        """Build the norm that ``config.normalization`` names."""
        kinds = {"LayerNorm": torch.nn.LayerNorm, "RMSNorm": torch.nn.RMSNorm}
        norm = kinds[config.normalization](hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm


def layer_specs(transformer_impl: str) -> LayerSpecs:
    """The specs of ``local`` or ``transformer_engine``.

    Raises:
        ImportError: Transformer Engine is asked for and not installed.
        ValueError: it is asked for on a machine without CUDA.
    """
    if transformer_impl == "local":
        return _local()
    if not torch.cuda.is_available():
        raise ValueError("model.transformer_impl=transformer_engine needs CUDA; set model.transformer_impl=local")
    return _transformer_engine()


def _local() -> LayerSpecs:
    # Checkpoint names follow Transformer Engine's, so that either implementation loads the other's checkpoints.
    names = {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }
    mlp = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)

    def layer(core_attention: type, mask: AttnMaskType) -> ModuleSpec:
        return _layer(TorchNorm, ColumnParallelLinear, core_attention, RowParallelLinear, mask, mlp, names)

    return LayerSpecs(
        vision_layer=layer(TileAttention, AttnMaskType.no_mask),
        language_layer=layer(PackedAttention, AttnMaskType.causal),
        norm=TorchNorm,
        projector=mlp,
    )


def _transformer_engine() -> LayerSpecs:
    from megatron.core.extensions.transformer_engine import (
        TEColumnParallelLinear,
        TEDotProductAttention,
        TELayerNormColumnParallelLinear,
        TENorm,
        TERowParallelLinear,
    )

    from megatron_focus.models.te_attention import PackedTEAttention

    mlp = MLPSubmodules(linear_fc1=TELayerNormColumnParallelLinear, linear_fc2=TERowParallelLinear)

    def layer(core_attention: type, mask: AttnMaskType) -> ModuleSpec:
        # The norms are part of the column-parallel linears here.
        return _layer(
            IdentityOp, TELayerNormColumnParallelLinear, core_attention, TERowParallelLinear, mask, mlp, names={}
        )

    return LayerSpecs(
        vision_layer=layer(TEDotProductAttention, AttnMaskType.no_mask),
        language_layer=layer(PackedTEAttention, AttnMaskType.causal),
        norm=TENorm,
        projector=MLPSubmodules(linear_fc1=TEColumnParallelLinear, linear_fc2=TERowParallelLinear),
    )


def _layer(
    norm: Any,
    linear_qkv: Any,
    core_attention: Any,
    linear_proj: Any,
    mask: AttnMaskType,
    mlp: MLPSubmodules,
    names: dict[str, str],
) -> ModuleSpec:
    attention = SelfAttentionSubmodules(linear_qkv=linear_qkv, core_attention=core_attention, linear_proj=linear_proj)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(module=SelfAttention, params={"attn_mask_type": mask}, submodules=attention),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=mlp_spec(mlp),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=names,
        ),
    )
