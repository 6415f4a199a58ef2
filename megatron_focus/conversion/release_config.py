"""A model's facts as the configuration classes of a release."""

from typing import Any

import torch
from transformers import AutoConfig, CLIPVisionConfig, GenerationConfig, LlavaNextConfig, PretrainedConfig

from data_pipeline.anyres import hf_grid_pinpoints
from megatron_focus.conversion.model_facts import ModelFacts
from megatron_focus.release.configuration_focus_llava import FocusLlavaConfig

AUTO_MAP = {
    "AutoConfig": "configuration_focus_llava.FocusLlavaConfig",
    "AutoModel": "modeling_focus_llava.FocusLlavaModel",
    "AutoModelForImageTextToText": "modeling_focus_llava.FocusLlavaForConditionalGeneration",
}


def _text_config(facts: ModelFacts) -> PretrainedConfig:
    """The language model's configuration."""
    text, tokens = facts.text, facts.tokens
    # Mistral's class has a sliding window unless told otherwise; Megatron trains with full attention.
    special: dict[str, Any] = {"sliding_window": None} if text.family == "mistral" else {}
    return AutoConfig.for_model(
        text.family,
        hidden_size=text.hidden_size,
        intermediate_size=text.ffn_hidden_size,
        num_hidden_layers=text.num_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_query_groups,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        rms_norm_eps=text.norm_epsilon,
        max_position_embeddings=text.max_position_embeddings,
        rope_parameters=dict(text.rope_parameters),
        tie_word_embeddings=text.tie_embeddings,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=list(tokens.eos_token_ids),
        pad_token_id=tokens.pad_token_id,
        **special,
    )


def _vision_config(facts: ModelFacts) -> PretrainedConfig:
    """The vision tower's configuration, with the last layer that Megatron leaves out."""
    vision = facts.vision
    return CLIPVisionConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.ffn_hidden_size,
        num_hidden_layers=vision.num_layers + 1,
        num_attention_heads=vision.num_attention_heads,
        image_size=facts.image.tile_size,
        patch_size=facts.image.patch_size,
        layer_norm_eps=vision.layernorm_epsilon,
        hidden_act="quick_gelu",
    )


def release_config(facts: ModelFacts, dtype: torch.dtype) -> FocusLlavaConfig:
    """The release's configuration.

    Raises:
        ValueError: naming a setting that the release does not support.
    """
    config = FocusLlavaConfig(
        **_common(facts, dtype),
        vision_sampler=dict(facts.vision_sampler),
        text_sampler=dict(facts.text_sampler),
        instruction_start_token_ids=[list(marker) for marker in facts.tokens.instruction_start_token_ids],
        instruction_end_token_ids=[list(marker) for marker in facts.tokens.instruction_end_token_ids],
    )
    config.architectures = ["FocusLlavaForConditionalGeneration"]
    config.auto_map = AUTO_MAP
    return config


def llava_next_config(facts: ModelFacts, dtype: torch.dtype) -> LlavaNextConfig:
    """The configuration of the same model as stock LLaVA-NeXT.

    Raises:
        ValueError: a sampler is on, so LLaVA-NeXT's code would compute something else.
    """
    on = [name for name in ("vision_sampler", "text_sampler") if getattr(facts, name)["enabled"]]
    if on:
        raise ValueError(
            f"the model has {' and '.join(on)} on, which LLaVA-NeXT does not know; export it with --format focus-llava"
        )
    config = LlavaNextConfig(**_common(facts, dtype))
    config.architectures = ["LlavaNextForConditionalGeneration"]
    return config


def _common(facts: ModelFacts, dtype: torch.dtype) -> dict[str, Any]:
    """What LLaVA-NeXT and the release share."""
    return {
        "vision_config": _vision_config(facts).to_dict(),
        "text_config": _text_config(facts).to_dict(),
        "image_token_index": facts.tokens.image_token_id,
        "image_grid_pinpoints": hf_grid_pinpoints(facts.image),
        "image_seq_length": facts.cells,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": facts.text.tie_embeddings,
        "dtype": dtype,
    }


def generation_config(facts: ModelFacts) -> GenerationConfig:
    """Greedy decoding that ends at the end of the turn or of the text."""
    tokens = facts.tokens
    return GenerationConfig(
        bos_token_id=tokens.bos_token_id,
        eos_token_id=list(tokens.eos_token_ids),
        pad_token_id=tokens.pad_token_id,
        do_sample=False,
        suppress_tokens=[tokens.image_token_id],  # a placeholder stands for an image, never for an answer
    )
