"""What the sizes of the parts must have in common."""

from megatron_focus.config.checks.choices import one_of
from megatron_focus.config.checks.samplers import text_sampler_problems, vision_sampler_problems
from megatron_focus.config.schema import ModelConfig


def model_problems(model: ModelConfig) -> list[str]:
    """One sentence for each contradiction within the model."""
    problems: list[str] = []
    image, vision, language = model.image, model.vision, model.language
    if image.tile_size % image.patch_size:
        problems.append(
            f"model.image.tile_size={image.tile_size} is not a multiple of model.image.patch_size={image.patch_size}"
        )
    for pinpoint in image.grid_pinpoints:
        if len(pinpoint) != 2 or any(side <= 0 or side % image.tile_size for side in pinpoint):
            problems.append(
                f"model.image.grid_pinpoints has {pinpoint}: both sides must be multiples of "
                f"model.image.tile_size={image.tile_size}"
            )
    if vision.num_layers < 2:
        problems.append(f"model.vision.num_layers={vision.num_layers}: the penultimate features need at least 2 layers")
    for name, part in (("vision", vision), ("language", language)):
        if part.hidden_size % part.num_attention_heads:
            problems.append(
                f"model.{name}.hidden_size={part.hidden_size} is not a multiple of "
                f"model.{name}.num_attention_heads={part.num_attention_heads}"
            )
    head = language.kv_channels or language.hidden_size // language.num_attention_heads
    if head % 2:
        problems.append(f"the head size {head} (model.language.kv_channels) must be even: RoPE turns pairs of channels")
    if language.num_attention_heads % language.num_query_groups:
        problems.append(
            f"model.language.num_attention_heads={language.num_attention_heads} is not a multiple of "
            f"model.language.num_query_groups={language.num_query_groups}"
        )
    if language.add_qkv_bias != (language.architecture == "qwen2"):
        problems.append(
            f"model.language.add_qkv_bias={language.add_qkv_bias} does not fit model.language.architecture="
            f"{language.architecture}: Qwen2 has a bias there, Llama and Mistral have none"
        )
    problems += one_of("model.language.architecture", language.architecture, ("llama", "qwen2", "mistral"))
    problems += one_of("model.transformer_impl", model.transformer_impl, ("local", "transformer_engine"))
    return problems + vision_sampler_problems(model) + text_sampler_problems(model)
