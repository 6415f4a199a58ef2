"""Text-guided sampler (Eq. 6-9) in float64, query by query and head by head, for tests to compare with.

Shapes: T instruction tokens, V visual tokens (newlines excepted), n heads, d head size.
"""

import math

import torch
from torch import Tensor


def text_guided_reference(q: Tensor, k: Tensor, image_of_key: Tensor, gamma: float) -> dict:
    """Score the visual tokens of one sample and choose those that stay.

    Args:
        q: [T, n, d], rotated queries of the instruction tokens.
        k: [V, key heads, d], rotated keys; head h reads key head h // (n / key heads).
        image_of_key: [V], the image of each visual token.
        gamma: share of the total score that the kept tokens must exceed; 1 or more keeps all.

    Returns:
        ``scores`` [V] float64, mean over queries of the largest attention over heads; ``keep`` int64, ascending
        indices of the tokens that stay. Without a query or a key everything stays.
    """
    num_queries, heads, head_size = q.shape
    num_keys, key_heads = k.shape[:2]
    everything = torch.arange(num_keys)
    if num_queries == 0 or num_keys == 0:
        return {"scores": torch.zeros(num_keys, dtype=torch.float64), "keep": everything}

    scores = torch.zeros(num_keys, dtype=torch.float64)
    for t in range(num_queries):
        best = torch.zeros(num_keys, dtype=torch.float64)
        for h in range(heads):
            key_head = h // (heads // key_heads)
            logits = k[:, key_head].double() @ q[t, h].double() / math.sqrt(head_size)
            best = torch.maximum(best, torch.softmax(logits, 0))
        scores += best / num_queries
    if gamma >= 1:
        return {"scores": scores, "keep": everything}

    order = sorted(range(num_keys), key=lambda v: (-scores[v].item(), v))
    total = math.fsum(scores.tolist())
    kept: set[int] = set()
    share = 0.0
    for v in order:
        kept.add(v)
        share += scores[v].item()
        if share / total > gamma:
            break
    for image in set(image_of_key.tolist()):
        kept.add(next(v for v in order if image_of_key[v] == image))
    return {"scores": scores, "keep": torch.tensor(sorted(kept))}
