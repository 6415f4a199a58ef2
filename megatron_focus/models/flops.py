"""Floating-point operations of the model, from lengths alone.

A multiplication and an addition count as two. Norms, activations and RoPE are left out, as is usual for MFU.
"""

from collections.abc import Collection, Iterable

from megatron_focus.config.schema import ModelConfig


def decoder_layer_flops(model: ModelConfig, seqlens: Iterable[int]) -> float:
    """Forward FLOPs of one decoder layer over samples of these lengths (causal attention: half the square)."""
    language = model.language
    head = language.kv_channels or language.hidden_size // language.num_attention_heads
    query, key_value = head * language.num_attention_heads, head * language.num_query_groups
    weights = language.hidden_size * (2 * query + 2 * key_value + 3 * language.ffn_hidden_size)
    return float(sum(2 * length * weights + 2 * length * length * query for length in seqlens))


def vision_flops(model: ModelConfig, tiles: int) -> float:
    """Forward FLOPs of the vision tower and the projector over ``tiles`` tiles."""
    vision, image = model.vision, model.image
    cells = image.cells_per_side**2
    length, width = cells + 1, vision.hidden_size
    patches = 2 * cells * 3 * image.patch_size**2 * width
    layer = 2 * length * width * (4 * width + 2 * vision.ffn_hidden_size) + 4 * length * length * width
    out = model.language.hidden_size
    projector = 2 * cells * out * (width + out)
    return float(tiles * (patches + (vision.num_layers - 1) * layer + projector))


def head_flops(model: ModelConfig, tokens: int) -> float:
    """Forward FLOPs of the language-model head over ``tokens`` tokens."""
    return float(2 * tokens * model.language.hidden_size * model.language.padded_vocab_size)


def training_passes(freeze: Collection[str]) -> tuple[float, float]:
    """Forward passes that a training step is worth: of the vision tower, and of the decoder with its head.

    A backward pass costs twice its forward pass where weights are trained, and once where gradients only pass through
    (attention, which has no weights, more: left out). Nothing in front of the tower is trained: a frozen one has none.

    Args:
        freeze: modules that are not trained, see ``optimizer.freeze``.
    """
    return 1.0 if "vision_tower" in freeze else 3.0, 2.0 if "language_model" in freeze else 3.0
