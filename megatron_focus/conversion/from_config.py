"""A run's configuration and tokenizer -> the facts the conversion needs."""

from typing import Any

from transformers import PreTrainedTokenizerFast

from data_pipeline.conversations.rendering import Renderer
from megatron_focus.config.schema import ModelConfig
from megatron_focus.conversion.model_facts import ModelFacts, TextFacts, TokenFacts, VisionFacts


def model_facts(model: ModelConfig, tokenizer: PreTrainedTokenizerFast, chat_template: str) -> ModelFacts:
    """Everything a release says of the model.

    Args:
        model: the model's configuration.
        tokenizer: the tokenizer it was trained with.
        chat_template: name of the conversation form, which decides how a user turn is recognised.

    Raises:
        ValueError: the form cannot be used with this tokenizer.
    """
    vision, language = model.vision, model.language
    renderer = Renderer(tokenizer, chat_template)
    start, end = renderer.instruction_markers()
    text_sampler, vision_sampler = model.text_sampler, model.vision_sampler
    return ModelFacts(
        vision=VisionFacts(
            hidden_size=vision.hidden_size,
            ffn_hidden_size=vision.ffn_hidden_size,
            num_layers=vision.num_layers - 1,
            num_attention_heads=vision.num_attention_heads,
            layernorm_epsilon=vision.layernorm_epsilon,
        ),
        text=TextFacts(
            family=language.architecture,
            hidden_size=language.hidden_size,
            ffn_hidden_size=language.ffn_hidden_size,
            num_layers=language.num_layers,
            num_attention_heads=language.num_attention_heads,
            num_query_groups=language.num_query_groups,
            head_dim=language.kv_channels or language.hidden_size // language.num_attention_heads,
            vocab_size=language.vocab_size,
            padded_vocab_size=model.language.padded_vocab_size,
            tie_embeddings=language.share_embeddings_and_output_weights,
            norm_epsilon=language.layernorm_epsilon,
            max_position_embeddings=language.max_position_embeddings,
            rope_parameters=_rope_parameters(model),
        ),
        tokens=TokenFacts(
            image_token_id=tokenizer.image_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_ids=_end_ids(renderer, tokenizer),
            instruction_start_token_ids=start,
            instruction_end_token_ids=end,
            chat_template=renderer.release_template,
        ),
        image=model.image,
        vision_sampler={
            "enabled": vision_sampler.enabled,
            "method": vision_sampler.method,
            "heuristic_keep": vision_sampler.heuristic_keep,
            "window": vision_sampler.window,
            "scales": list(vision_sampler.scales),
            "score_pooling": vision_sampler.score_pooling,
            "score_scale": vision_sampler.score_scale,
            "center_scores": vision_sampler.center_scores,
            "gate": vision_sampler.gate,
            "global_view": vision_sampler.global_view,
        },
        text_sampler={
            "enabled": text_sampler.mode != "off",
            "layer": text_sampler.layer,
            "gamma": text_sampler.gamma,
        },
    )


def _rope_parameters(model: ModelConfig) -> dict[str, Any]:
    """transformers' RoPE parameters; the constants of Llama-3.1's scaling are Megatron-Core's, which are Meta's."""
    language = model.language
    if not language.rope_scaling:
        return {"rope_type": "default", "rope_theta": float(language.rotary_base)}
    return {
        "rope_type": "llama3",
        "rope_theta": float(language.rotary_base),
        "factor": language.rope_scaling_factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _end_ids(renderer: Renderer, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids that end an answer: the end of a turn as the template writes it, and the end of the text."""
    end_of_text = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys([*renderer.end_ids, *end_of_text]))
