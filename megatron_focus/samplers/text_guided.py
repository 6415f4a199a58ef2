"""Text-guided sampler: the visual tokens that the user's words ask for (paper section 3.3, Eq. 6-9).

Single-device mathematics on padded groups: B samples that drop at this layer, at most T instruction tokens and V visual
tokens each, n query heads in g key groups of size d. The parallel form hands in ``reduce_max``, which takes the maximum
over the head shards of all tensor-parallel ranks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WORKSPACE_BYTES = 256 * 2**20
"""Largest attention block held at a time; queries are taken in chunks that fit."""

_PARTS = 2.0**50
"""An importance is counted in parts of it; those of a sample sum to at most its number of heads."""


@torch.no_grad()
def importance(
    queries: Tensor,
    keys: Tensor,
    query_valid: Tensor,
    key_valid: Tensor,
    reduce_max: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Importance S of each visual token (Eq. 6-8), float32 [B, V]; 0 at padding.

    A is softmaxed over the visual tokens of the sample alone; S is the mean over instruction tokens of the maximum over
    ALL heads.

    Args:
        queries: [B, T, n, d], rotated queries of the instruction tokens (this rank's heads).
        keys: [B, V, g, d], rotated keys of the visual tokens (this rank's groups).
        query_valid: bool [B, T].
        key_valid: bool [B, V].
        reduce_max: elementwise maximum over the ranks that share the heads; None where one rank has them all.
    """
    batch, length, heads, size = queries.shape
    groups = keys.shape[2]
    keys_t = keys.float().permute(0, 2, 3, 1)[:, :, None]  # [B, g, 1, d, V]
    total = keys.new_zeros((batch, keys.shape[1]), dtype=torch.float32)
    chunk = max(1, WORKSPACE_BYTES // (4 * batch * heads * max(keys.shape[1], 1)))
    for start in range(0, length, chunk):
        block = queries[:, start : start + chunk].float() * size**-0.5
        block = block.unflatten(2, (groups, heads // groups)).permute(0, 2, 3, 1, 4)  # [B, g, n/g, T', d]
        scores = (block @ keys_t).masked_fill(~key_valid[:, None, None, None], -torch.inf)
        strongest = scores.softmax(-1).amax((1, 2))  # [B, T', V]
        if reduce_max is not None:
            strongest = reduce_max(strongest)
        total += (strongest * query_valid[:, start : start + chunk, None]).sum(1)
    return total / query_valid.sum(1).clamp(min=1)[:, None]


@torch.no_grad()
def select_by_share(scores: Tensor, key_valid: Tensor, image: Tensor, gamma: Tensor) -> Tensor:
    """The fewest top tokens whose share of the importance exceeds gamma (Eq. 9), bool [B, V].

    Ties go to the earlier token; each image keeps at least its best token; gamma of 1 or more keeps everything.

    Args:
        scores: float32 [B, V].
        key_valid: bool [B, V].
        image: int64 [B, V], image of each token (any numbering within the row).
        gamma: float64 [B].
    """
    width = scores.shape[1]
    ranked = scores.masked_fill(~key_valid, -1.0)  # importance is never negative, so padding comes last
    order = ranked.argsort(dim=1, descending=True, stable=True)
    # In whole parts, whose sums are exact: a sum of floats depends on its order, which CUDA leaves open.
    cumulative = (ranked.gather(1, order).clamp(min=0).double() * _PARTS).long().cumsum(1).double()
    share = cumulative / cumulative[:, -1:].clamp(min=1)
    # Token j of the ranking is needed as long as the share of those before it does not exceed gamma.
    before = torch.nn.functional.pad(share, (1, 0))[:, :width]
    needed = (before <= gamma[:, None]) | (gamma[:, None] >= 1)
    keep = torch.zeros_like(key_valid).scatter(1, order, needed)
    return (keep | _best_of_each_image(ranked, image, order)) & key_valid


def _best_of_each_image(ranked: Tensor, image: Tensor, order: Tensor) -> Tensor:
    """bool [B, V], true at the first token of each image in the ranking."""
    by_rank = image.gather(1, order)
    # A stable sort by image keeps the ranking inside each image; its first entry is the best.
    grouped = by_rank.argsort(dim=1, stable=True)
    ids = by_rank.gather(1, grouped)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return torch.zeros_like(first).scatter(1, order.gather(1, grouped), first)
