"""Adds the gradient of the balance loss to a dense model.

Megatron scales its own auxiliary losses for mixture-of-experts models only, and assumes that every microbatch weighs
the same. Here each microbatch weighs its share of the step's windows, and the gradients of the step are divided by its
loss tokens afterwards, so the coefficient carries both.
"""

from typing import Any

import torch
from torch import Tensor


class _AddGradient(torch.autograd.Function):
    """Identity on the tokens; in the backward pass the loss receives the gradient ``coefficient``."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, loss: Tensor, coefficient: float) -> Tensor:
        ctx.coefficient = coefficient
        ctx.loss_like = loss.detach()
        return tokens.view_as(tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return grads[0], torch.full_like(ctx.loss_like, ctx.coefficient), None


def with_balance_loss(tokens: Tensor, balance: Tensor, coefficient: float) -> Tensor:
    """``tokens`` unchanged, with d(coefficient * balance) added to the backward pass; use the return value."""
    return _AddGradient.apply(tokens, balance, coefficient)


def balance_coefficient(alpha: float, windows: int, step_windows: int, step_loss_tokens: int) -> float:
    """Gradient of one microbatch's balance term (Eq. 3).

    The step's loss is mean token loss + alpha * sum over microbatches of (windows / step_windows) * balance, and
    gradients are divided by ``step_loss_tokens`` at the end of the step (``calculate_per_token_loss``).

    Args:
        alpha: weight of the balance loss.
        windows: counted windows of the microbatch.
        step_windows: counted windows of the step over all data-parallel ranks.
        step_loss_tokens: loss tokens of the step over all data-parallel ranks.
    """
    if step_windows == 0:
        return 0.0
    return alpha * windows / step_windows * step_loss_tokens
