"""Adds the gradient of the balance loss (paper Eq. 3-5 and 10) to a dense model.

Megatron scales its own auxiliary losses for mixture-of-experts models only, and assumes that every microbatch weighs
the same. Here the loss is taken over the regions of the global batch (``balance_scope: batch``, ``BatchBalance``), or
over those of each microbatch, which weighs its share of the step's regions (``row``, ``with_balance_loss``).

Shapes: S scales, G scores of a region.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_focus.config.schema import VisionSamplerConfig
from megatron_focus.samplers.vision_guided import VisualTokens


class BatchBalance:
    """The balance loss of a step, over all of its rows on all data-parallel ranks.

    The rows of this rank are collected in the forward passes. ``add_gradient`` comes when the step's gradients are
    final, that is reduced and divided by the loss tokens, so the loss is the mean token loss plus alpha times the
    balance term, and gradients that were reduced in the backward pass are not touched too early. It gives every rank
    the whole sum: under the distributed optimizer each uses its shard of it.
    """

    def __init__(self, sampler: VisionSamplerConfig) -> None:
        self.sampler = sampler
        self._sums: Tensor | None = None

    def add(self, visual: VisualTokens) -> None:
        """Count the windows of one row; nothing here waits for the device."""
        if visual.choice is None or visual.choice.gradients is None:
            return
        row = torch.cat([visual.scale_counts.double(), visual.choice.gradients.double().flatten()])
        self._sums = row if self._sums is None else self._sums + row

    def add_gradient(self, selector: nn.Linear, group: ProcessGroup) -> None:
        """Add the gradient to the selector's ``main_grad`` (a collective over ``group``).

        Args:
            selector: weight [S, G] and bias [S].
            group: the data-parallel ranks that hold this selector.
        """
        scales, scores = selector.weight.shape
        size = scales + scales * scales * (scores + 1)
        sums = self._sums if self._sums is not None else torch.zeros(size, dtype=torch.float64)
        sums = sums.to(selector.weight.device)
        if group.size() > 1:
            torch.distributed.all_reduce(sums, group=group)
        counts, gradients = sums.split([scales, size - scales])
        windows = counts.sum().clamp(min=1)
        share = self.sampler.balance_loss_coeff * counts / windows**2  # alpha f_i / N, as P_i is a sum divided by N
        if self.sampler.balance_weights is not None:
            share = share * share.new_tensor(self.sampler.balance_weights)
        gradient = torch.einsum("i,ijg->jg", share, gradients.view(scales, scales, scores + 1))
        for parameter, part in ((selector.weight, gradient[:, :-1]), (selector.bias, gradient[:, -1])):
            main_grad: Tensor = parameter.main_grad  # type: ignore[attr-defined]  # Megatron's
            main_grad.add_(part.to(main_grad.dtype))


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


def row_balance_coefficient(
    sampler: VisionSamplerConfig, windows: int, step_windows: int, step_loss_tokens: int
) -> float:
    """Gradient of one microbatch's balance term (Eq. 3) under ``balance_scope: row``, and 0 otherwise.

    The step's loss is mean token loss + alpha * sum over microbatches of (windows / step_windows) * balance, and
    gradients are divided by ``step_loss_tokens`` at the end of the step (``calculate_per_token_loss``).

    Args:
        sampler: its settings.
        windows: counted windows of the microbatch.
        step_windows: counted windows of the step over all data-parallel ranks.
        step_loss_tokens: loss tokens of the step over all data-parallel ranks.
    """
    if sampler.balance_scope != "row" or step_windows == 0:
        return 0.0
    return sampler.balance_loss_coeff * windows / step_windows * step_loss_tokens
