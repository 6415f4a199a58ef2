"""What the balance loss and the reports need of a row's choices (paper Eq. 3-5 and 10), as sums over windows.

Over a batch f and P are sums over all of its rows, so f is not known while a row is computed. With
``L = sum_i w_i f_i P_i`` and f a constant, the gradient is ``sum_i w_i f_i dP_i / d(W, b)``: the gradients of every P_i
are summed row by row, and combined with f at the end of the step (``training/balance_loss.py``).

Shapes: M windows, S scales, G scores of a window (cells of the global view), t tiles, K windows of a tile.
"""

import torch
from torch import Tensor


def prob_sum_gradients(scores: Tensor, probs: Tensor, counted: Tensor) -> Tensor:
    """Gradients of the sum of each scale's probability by the selector, float32 [S, S, G + 1].

    ``[i]`` belongs to scale i: the gradient of the selector's weight [S, G], with that of its bias as last column. The
    scores are constants, so nothing before the selector is reached.

    Args:
        scores: float32 [M, G], the selector's input.
        probs: float32 [M, S], softmax of its output.
        counted: bool [M], windows that count.
    """
    scales = probs.shape[1]
    identity = torch.eye(scales, dtype=probs.dtype, device=probs.device)
    by_logit = (probs * counted[:, None])[:, :, None] * (identity - probs[:, None, :])  # d p_i / d z_j
    by_logit = by_logit.flatten(1)
    weight, bias = by_logit.T @ scores, by_logit.sum(0)
    return torch.cat([weight, bias[:, None]], dim=1).unflatten(0, (scales, scales))


def entropy_within_pictures(chosen: Tensor, context_tile: Tensor) -> Tensor:
    """Sum over pictures of windows times entropy of the picture's choices in nats, float64 scalar.

    A picture that takes one scale everywhere has 0.

    Args:
        chosen: int64 [M, S], 1 at the scale that a counted window chose.
        context_tile: int64 [t], for each tile the global view of its picture.
    """
    of_tile = chosen.view(len(context_tile), -1, chosen.shape[1]).sum(1)
    of_picture = torch.zeros_like(of_tile).index_add_(0, context_tile, of_tile)
    return count_entropy(of_picture).sum()


def count_entropy(counts: Tensor) -> Tensor:
    """Total times entropy in nats of the last dimension's counts, float64."""
    counts = counts.double()
    total = counts.sum(-1)
    return torch.xlogy(total, total) - torch.xlogy(counts, counts).sum(-1)
