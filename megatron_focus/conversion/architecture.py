"""transformers' configurations of the parts -> this project's settings, or a refusal that names the key.

A key is refused when Megatron's modules here would compute something else than transformers' does.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from data_pipeline.config import ImageGeometry
from megatron_focus.config.schema import LanguageConfig, VisionConfig
from megatron_focus.conversion.model_facts import TEXT_FAMILIES

_LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Constants of Llama-3.1's scaling that Megatron-Core has built in."""

_CANVASES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""LLaVA-NeXT's canvases, (width, height) in tiles."""


def model_type(folder: Path) -> str:
    """The ``model_type`` of a model folder.

    Raises:
        ValueError: there is no readable ``config.json``.
    """
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not name a model_type: {type(error).__name__}: {error}") from error


def language_config(config: PretrainedConfig, where: str) -> LanguageConfig:
    """The language model's settings; ``vocab_size`` is still that of its embedding.

    Args:
        config: transformers' configuration of the text model.
        where: file and key that it is from, for messages.

    Raises:
        ValueError: naming every key that cannot be carried over.
    """
    family = config.model_type
    if family not in TEXT_FAMILIES:
        raise ValueError(f"{where}: model_type {family!r} cannot be imported; it must be one of {TEXT_FAMILIES}")
    scaling, problems = _rope_scaling(config.rope_parameters)
    rotary_base = config.rope_parameters["rope_theta"]
    expected = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    problems += [
        f"{key} is {getattr(config, key)!r}; only {value!r} can be imported"
        for key, value in expected.items()
        if getattr(config, key, value) != value
    ]
    if rotary_base != int(rotary_base):
        problems.append(f"rope_theta is {rotary_base}; Megatron-Core takes whole numbers")
    if problems:
        raise ValueError("\n".join(f"{where}: {problem}" for problem in problems))
    # Full attention, which Megatron computes, is the same as a sliding window in texts no longer than the window.
    window = getattr(config, "sliding_window", None)
    longest = min(config.max_position_embeddings, window or config.max_position_embeddings)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return LanguageConfig(
        architecture=family,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        kv_channels=None if head_dim * config.num_attention_heads == config.hidden_size else head_dim,
        vocab_size=config.vocab_size,
        max_position_embeddings=longest,
        layernorm_epsilon=config.rms_norm_eps,
        rotary_base=int(rotary_base),
        rope_scaling=scaling is not None,
        rope_scaling_factor=scaling or LanguageConfig.rope_scaling_factor,
        add_qkv_bias=family == "qwen2",
        share_embeddings_and_output_weights=bool(config.tie_word_embeddings),
    )


def _rope_scaling(rope: dict[str, Any]) -> tuple[float | None, list[str]]:
    """The factor of Llama-3.1's scaling, None without scaling; and what cannot be imported."""
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None, []
    if kind != "llama3":
        return None, [f"rope_type is {kind!r}; only 'default' and 'llama3' can be imported"]
    return float(rope["factor"]), [
        f"rope_parameters.{key} is {rope.get(key)!r}; Megatron-Core has {value!r} built in"
        for key, value in _LLAMA3_SCALING.items()
        if rope.get(key) != value
    ]


def vision_config(config: PretrainedConfig, where: str) -> tuple[VisionConfig, ImageGeometry]:
    """The tower's settings, and the tiles that it takes, with LLaVA-NeXT's canvases.

    Raises:
        ValueError: naming every key that cannot be carried over.
    """
    if config.model_type not in ("clip_vision_model", "clip_vision"):
        raise ValueError(f"{where}: model_type {config.model_type!r} is not a CLIP vision model")
    expected = {"hidden_act": "quick_gelu", "num_channels": 3}
    problems = [
        f"{where}: {key} is {getattr(config, key)!r}; only {value!r} can be imported"
        for key, value in expected.items()
        if getattr(config, key) != value
    ]
    if problems:
        raise ValueError("\n".join(problems))
    tile = config.image_size
    vision = VisionConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        layernorm_epsilon=config.layer_norm_eps,
    )
    pinpoints = [[width * tile, height * tile] for width, height in _CANVASES]
    return vision, ImageGeometry(tile_size=tile, patch_size=config.patch_size, grid_pinpoints=pinpoints)


def check_llava_next(config: PretrainedConfig, where: str) -> None:
    """Refuse a LLaVA-NeXT that reads its tower, or projects its features, in another way than the paper's.

    Raises:
        ValueError: naming every such key.
    """
    expected = {
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
    }
    problems = [
        f"{where}: {key} is {getattr(config, key)!r}; only {value!r} can be imported"
        for key, value in expected.items()
        if getattr(config, key) != value
    ]
    if problems:
        raise ValueError("\n".join(problems))
