"""Configuration -> Megatron transformer configurations -> model chunks of this rank."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.activations import quick_gelu
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_focus.config.schema import ModelConfig, ParallelConfig
from megatron_focus.models.attention_backend import attention_in_use
from megatron_focus.models.focus_llava import FocusLLaVA
from megatron_focus.models.layer_specs import layer_specs


def build_model(
    model: ModelConfig, parallel: ParallelConfig, *, image_token_id: int, dtype: torch.dtype
) -> list[FocusLLaVA]:
    """This rank's model chunks, on its device: one, or one a virtual stage.

    Args:
        model: what is computed.
        parallel: how it is laid out; Megatron's parallel state has been initialised with it.
        image_token_id: id of the image placeholder.
        dtype: dtype of the parameters.

    Raises:
        ValueError: this device has no fused attention for it.
    """
    specs = layer_specs(model.transformer_impl)
    attention_in_use(
        model,
        parallel.tensor_model_parallel_size,
        dtype,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    config = language_config(model, parallel, dtype)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    chunks = []
    for chunk in range(parallel.virtual_pipeline_model_parallel_size or 1):
        vp_stage = chunk if parallel.virtual_pipeline_model_parallel_size else None
        built = FocusLLaVA(
            model,
            config=config,
            vision_config=vision_config(model, parallel, dtype),
            projector_config=projector_config(model, parallel, dtype),
            specs=specs,
            image_token_id=image_token_id,
            pg_collection=groups,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            vp_stage=vp_stage,
        )
        chunks.append(built.to(dtype).cuda())
    return chunks


def language_config(model: ModelConfig, parallel: ParallelConfig, dtype: torch.dtype) -> TransformerConfig:
    """Megatron's configuration of the decoder."""
    language, fused = model.language, model.transformer_impl == "transformer_engine"
    return TransformerConfig(
        num_layers=language.num_layers,
        hidden_size=language.hidden_size,
        ffn_hidden_size=language.ffn_hidden_size,
        num_attention_heads=language.num_attention_heads,
        num_query_groups=language.num_query_groups,
        kv_channels=language.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=language.layernorm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=language.add_qkv_bias,
        apply_rope_fusion=fused,
        bias_activation_fusion=fused,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        pipeline_model_parallel_layout=parallel.pipeline_model_parallel_layout,
        pipeline_dtype=dtype,
        # Batched messages of the interleaved schedule wait for each other in a circle (PP 2, and PP 4 with one group).
        overlap_p2p_comm=parallel.virtual_pipeline_model_parallel_size is not None,
        batch_p2p_comm=parallel.virtual_pipeline_model_parallel_size is None,
        sequence_parallel=parallel.sequence_parallel,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # required by variable_seq_lengths, although there are no experts
        calculate_per_token_loss=True,
        cross_entropy_loss_fusion=parallel.cross_entropy_loss_fusion,
        cross_entropy_fusion_impl=parallel.cross_entropy_fusion_impl,
        **_common(model, parallel, dtype),
    )


def vision_config(model: ModelConfig, parallel: ParallelConfig, dtype: torch.dtype) -> TransformerConfig:
    """Megatron's configuration of the vision tower: one layer less than published, all on the first stage."""
    vision = model.vision
    # Megatron's own block needs whole groups; single layers always divide the tower.
    uniform = parallel.recompute_granularity == "full" and parallel.recompute_method == "uniform"
    return TransformerConfig(
        num_layers=vision.num_layers - 1,
        hidden_size=vision.hidden_size,
        ffn_hidden_size=vision.ffn_hidden_size,
        num_attention_heads=vision.num_attention_heads,
        normalization="LayerNorm",
        layernorm_epsilon=vision.layernorm_epsilon,
        activation_func=quick_gelu,
        add_bias_linear=True,
        bias_activation_fusion=False,
        **_common(model, parallel, dtype, recompute_num_layers=1 if uniform else parallel.recompute_num_layers),
    )


def projector_config(model: ModelConfig, parallel: ParallelConfig, dtype: torch.dtype) -> TransformerConfig:
    """Megatron's configuration of the two-layer projector."""
    language = model.language
    return TransformerConfig(
        num_layers=1,
        hidden_size=language.hidden_size,
        ffn_hidden_size=language.hidden_size,
        num_attention_heads=language.num_attention_heads,
        activation_func=torch.nn.functional.gelu,
        add_bias_linear=True,
        bias_activation_fusion=False,
        **_common(model, parallel, dtype, recompute_granularity=None, recompute_method=None, recompute_num_layers=None),
    )


def _common(model: ModelConfig, parallel: ParallelConfig, dtype: torch.dtype, **overrides: Any) -> dict[str, Any]:
    """What all three transformers share; ``overrides`` replace single values."""
    on_gpu = torch.cuda.is_available()
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "init_method_std": model.init_method_std,
        "use_cpu_initialization": not on_gpu,
        "deterministic_mode": torch.are_deterministic_algorithms_enabled(),
        "hidden_dropout": 0.0,  # nothing on the device is random, so a run needs no generator state to repeat itself
        "attention_dropout": 0.0,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": parallel.gradient_accumulation_fusion,
        "recompute_granularity": parallel.recompute_granularity,
        "recompute_method": parallel.recompute_method,
        "recompute_num_layers": parallel.recompute_num_layers,
    } | overrides
