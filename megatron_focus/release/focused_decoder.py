"""The language model's layers, with tokens leaving before one of them.

Shapes: B rows, L tokens of a row before the drop, K behind it, C hidden size, n visual tokens of all images.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from .focus_cache import FocusCache
from .text_sampling import select_visual_tokens
from .token_sequence import TokenSequence
from .vision_sampling import VisualTokens

FLASH_DTYPES = (torch.float16, torch.bfloat16)
"""What FlashAttention computes in."""


@dataclass
class Decoded:
    """What came out of the layers."""

    last_hidden_state: Tensor
    """[B, K, C], behind the final norm."""
    hidden_states: tuple[Tensor, ...] | None
    """The input of each layer and the last state; [B, L, C] before the drop, [B, K, C] behind it."""
    sequence: TokenSequence
    """The tokens that are left."""
    importance: Tensor | None
    """float32 [n], NaN where there is none; None if nothing was scored."""


def _importance_of_tokens(scores: Tensor, sequence: TokenSequence, num_tokens: int) -> Tensor:
    """Scores [B, L] put at their visual tokens [n]."""
    is_visual = sequence.visual >= 0
    importance = scores.new_full((num_tokens,), torch.nan)
    importance[sequence.visual[is_visual]] = scores[is_visual]
    return importance


def check_attention(implementation: str, hidden_states: Tensor) -> None:
    """Refuse what would compute something else than attention over the tokens that are left.

    Raises:
        ValueError: for an implementation to which transformers gives no mask of the padding, and for FlashAttention in
            a type that it does not compute in.
    """
    if implementation in ("eager", "sdpa"):
        return
    if "flash" not in implementation:
        raise ValueError(
            f"attention implementation {implementation!r} is not supported; use 'eager', 'sdpa' or 'flash_attention_2'"
        )
    device = hidden_states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
    if dtype not in FLASH_DTYPES:
        raise ValueError(
            f"{implementation} computes in float16 or bfloat16, but the model is in {dtype}; load it with "
            "dtype=torch.bfloat16 or use attn_implementation='sdpa'"
        )


def _device_of(layer: Any) -> torch.device:
    """Where a layer computes. What accelerate loads only when it is needed lies on ``meta``; its hook then knows."""
    device = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    return layer.input_layernorm.weight.device if device is None else torch.device(device)


def decode(
    language_model: Any,
    hidden_states: Tensor,
    sequence: TokenSequence,
    visual: VisualTokens | None,
    cache: FocusCache | None,
    drop_layer: int | None,
    gamma: float,
    output_hidden_states: bool,
    **kwargs: Any,
) -> Decoded:
    """Run the layers; before ``drop_layer`` the visual tokens the instruction asks least for are dropped.

    Tokens that stay keep their positions. The cache, if any, learns what its layers hold. Layers may be on several
    devices: the states go where each computes, all that is known of the tokens stays where the sequence is.

    Args:
        language_model: a Llama-like text model.
        hidden_states: [B, L, C], embeddings.
        sequence: what is known of the L tokens, padded on the left.
        visual: the tokens of all images; None if there are none, then nothing is dropped.
        cache: keys and values of earlier passes, which dropped tokens before the same layer.
        drop_layer: counted from 0; None keeps everything.
        gamma: share of the importance that stays.
        output_hidden_states: whether to return the states between the layers.
        **kwargs: passed to each layer.

    Raises:
        ValueError: see :func:`check_attention`.
    """
    check_attention(language_model.config._attn_implementation, hidden_states)
    positions, new_tokens = sequence.position, sequence.valid
    all_mask = new_tokens if cache is None else cache.with_past(cache.all_mask, new_tokens)
    kept_mask = new_tokens if cache is None else cache.with_past(cache.kept_mask, new_tokens)

    def attention_inputs(layer: int, held: Tensor) -> dict[str, Any]:
        """Mask and rotary tables from ``layer`` on, whose keys are the tokens ``held``."""
        # No position ids: FlashAttention gets no mask where there is no padding, and would then take a gap in the
        # positions for the border of two packed samples. The rotary tables hold all that the layers need.
        mask = create_causal_mask(
            config=language_model.config,
            inputs_embeds=hidden_states,
            attention_mask=held.to(hidden_states.device),
            past_key_values=cache,
            layer_idx=layer,
        )
        position = sequence.position.to(hidden_states.device)
        rotary = language_model.rotary_emb(hidden_states, position_ids=position)
        return {"attention_mask": mask, "position_embeddings": rotary}

    states: list[Tensor] = []
    importance = None
    inputs = attention_inputs(0, all_mask)
    for index, layer in enumerate(language_model.layers):
        if index == drop_layer:
            if visual is not None and len(visual.tokens):
                home, there = sequence.visual.device, _device_of(layer)
                scored = (sequence.visual >= 0) & ~visual.is_newline.to(home)[sequence.visual]
                image = torch.where(scored, visual.image.to(home)[sequence.visual], -1)
                # The selection calls parts of the layer, before which accelerate does not move what they read.
                hidden_states = hidden_states.to(there)
                cosine, sine = (table.to(there) for table in inputs["position_embeddings"])
                keep, scores = select_visual_tokens(
                    layer, hidden_states, (cosine, sine), sequence.is_instruction.to(there), image.to(there), gamma
                )
                importance = _importance_of_tokens(scores.to(home), sequence, len(visual.tokens))
                sequence, origin = sequence.select(keep.to(home))
                hidden_states = gather_states(hidden_states, origin)
                kept_mask = sequence.valid
            inputs = attention_inputs(index, kept_mask)
        if output_hidden_states:
            states.append(hidden_states)
        hidden_states = layer(hidden_states, past_key_values=cache, use_cache=cache is not None, **inputs, **kwargs)

    hidden_states = language_model.norm(hidden_states)
    if cache is not None:
        cache.record(positions, all_mask, kept_mask)
    every_state = (*states, hidden_states) if output_hidden_states else None
    return Decoded(hidden_states, every_state, sequence, importance)


def gather_states(hidden_states: Tensor, index: Tensor) -> Tensor:
    """[B, K, C], the states at ``index`` (int64 [B, K])."""
    index = index.to(hidden_states.device)[..., None]
    return hidden_states.gather(1, index.expand(-1, -1, hidden_states.shape[-1]))
