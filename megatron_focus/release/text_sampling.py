"""Text-guided sampling: inside the language model, visual tokens the instruction does not attend to are dropped.

FocusLLaVA, Eq. 6-9. Shapes: B rows, L tokens of a row, T instruction tokens, V visual tokens of a row without newlines,
n heads, k key heads, d head size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import rotate_half

WORKSPACE_BYTES = 256 * 2**20
"""Largest block of attention held at a time; instruction tokens are taken in blocks that fit."""

PARTS = 2.0**50
"""An importance is counted in parts of it; those of a prompt sum to at most the number of heads."""


def _starts_of(pattern: list[int], input_ids: Tensor) -> Tensor:
    """bool [B, L], where ``pattern`` begins."""
    found = torch.zeros_like(input_ids, dtype=torch.bool)
    length = len(pattern)
    if 0 < length <= input_ids.shape[1]:
        slices = input_ids.unfold(1, length, 1)
        found[:, : slices.shape[1]] = (slices == torch.tensor(pattern, device=input_ids.device)).all(-1)
    return found


def _moved(found: Tensor, steps: int) -> Tensor:
    """bool [B, L], each True that many tokens later."""
    return nn.functional.pad(found, (steps, 0), value=False)[:, : found.shape[1]]


def instruction_mask(
    input_ids: Tensor, is_image: Tensor, start_ids: list[list[int]], end_ids: list[list[int]]
) -> Tensor:
    """bool [B, L], the content of each row's latest user turn, behind the last image; rows without an image have none.

    Args:
        input_ids: [B, L].
        is_image: bool [B, L], image placeholders.
        start_ids: the markers after which the content of a user turn begins, of which the longest that fits counts;
            none when the template has no turns.
        end_ids: the markers that end a turn.
    """
    step = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    begins, in_marker, ends = (torch.zeros_like(is_image) for _ in range(3))
    for pattern in start_ids:
        found = _starts_of(pattern, input_ids)
        begins |= _moved(found, len(pattern))
        for offset in range(len(pattern)):
            in_marker |= _moved(found, offset)
    for pattern in end_ids:
        ends |= _starts_of(pattern, input_ids)
    last_begin = torch.where(begins, step, -1).cummax(1).values
    last_end = torch.where(ends, step, -1).cummax(1).values
    last_image = torch.where(is_image, step, -1).amax(1, keepdim=True)
    latest = torch.where(begins & ~in_marker, step, -1).amax(1, keepdim=True)
    in_turn = (last_begin > last_end) & ~in_marker
    return in_turn & (step >= latest) & (step > last_image) & (last_image >= 0)


def importance(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """float32 [V], mean over the instruction tokens of the largest attention over all heads (Eq. 6-8).

    Args:
        queries: [T, n, d], rotated.
        keys: [V, k, d], rotated; head h reads key head h // (n / k).
        scaling: factor of the products.
    """
    per_group = queries.float().unflatten(1, (keys.shape[1], -1)) * scaling
    keys_of_group = keys.float().permute(1, 2, 0)[:, None]  # [k, 1, d, V]
    total = keys_of_group.new_zeros(len(keys))
    chunk = max(1, WORKSPACE_BYTES // (4 * queries.shape[1] * len(keys)))
    for block in per_group.split(chunk):
        attention = (block.permute(1, 2, 0, 3) @ keys_of_group).softmax(-1)  # [k, n / k, T', V]
        total += attention.amax((0, 1)).sum(0)
    return total / len(queries)


def important_enough(scores: Tensor, image: Tensor, gamma: float) -> Tensor:
    """bool [V], the fewest tokens whose share of the total exceeds ``gamma``, and each image's best (Eq. 9).

    Args:
        scores: [V], at least one.
        image: int64 [V], the image of each token.
        gamma: share; 1 or more keeps all.
    """
    if gamma >= 1:
        return torch.ones_like(scores, dtype=torch.bool)
    order = scores.sort(descending=True, stable=True).indices
    # In whole parts, whose sums are exact whatever their order, as in training.
    cumulated = (scores[order].double() * PARTS).long().cumsum(0).double()
    # The token that first exceeds the share is kept too: what stands before it does not exceed it.
    exceeds = cumulated / cumulated[-1].clamp(min=1) > gamma
    keep = exceeds.long().cumsum(0) - exceeds.long() == 0
    # In this order an image's best token is its first.
    rank = torch.arange(len(order), device=order.device)
    best = rank.new_full((int(image.max()) + 1,), len(order)).scatter_reduce(0, image[order], rank, "amin")
    keep[best[best < len(order)]] = True
    return torch.zeros_like(keep).scatter(0, order, keep)


@torch.no_grad()
def select_visual_tokens(
    layer: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    is_instruction: Tensor,
    image: Tensor,
    gamma: float,
) -> tuple[Tensor, Tensor]:
    """Which tokens enter ``layer``, chosen by its own queries and keys.

    Args:
        layer: a Llama-like decoder layer.
        hidden_states: [B, L, C], its input.
        position_embeddings: cosine and sine [B, L, d] of the tokens' positions.
        is_instruction: bool [B, L].
        image: int64 [B, L], the image of visual tokens other than newlines, -1 elsewhere.
        gamma: see :func:`important_enough`.

    Returns:
        bool [B, L], False for visual tokens to drop; float32 [B, L], importance, NaN where there is none.
    """
    attention, is_visual = layer.self_attn, image >= 0
    # Rows without an image or without an instruction drop nothing.
    asked = is_instruction.any(1) & is_visual.any(1)
    is_query, is_key = is_instruction & asked[:, None], is_visual & asked[:, None]
    keep = torch.ones_like(is_visual)
    scores = torch.full_like(image, torch.nan, dtype=torch.float32)

    def project(projection: nn.Module, mask: Tensor) -> list[Tensor]:
        """Rotated heads [tokens, heads, d] of the masked tokens, one tensor a row."""
        heads = projection(layer.input_layernorm(hidden_states[mask])).unflatten(-1, (-1, attention.head_dim))
        cosine, sine = (table.expand(*mask.shape, -1)[mask][:, None] for table in position_embeddings)
        return list((heads * cosine + rotate_half(heads) * sine).split(mask.sum(1).tolist()))

    queries, keys = project(attention.q_proj, is_query), project(attention.k_proj, is_key)
    for row in asked.nonzero()[:, 0].tolist():
        row_scores = importance(queries[row], keys[row], attention.scaling)
        scores[row, is_key[row]] = row_scores
        keep[row, is_key[row]] = important_enough(row_scores, image[row, is_key[row]], gamma)
    return keep, scores
