"""Vision-guided sampler: one scale for each region of the image (paper section 3.2, Eq. 1-5 and 10).

Single-device mathematics. Under tensor parallelism every rank holds the same inputs and the same selector, so the
selector's gradient is complete on each of them. The parallel form hands in ``agree``: all choose alike to the bit.

Shapes: t tiles, g cells along a tile, w window side, M windows, S scales, C hidden size, V visual tokens, I images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megatron_focus.config.schema import VisionSamplerConfig
from megatron_focus.samplers.balance import entropy_within_pictures, prob_sum_gradients
from megatron_focus.samplers.window_plan import NEWLINE_SCALE, WindowPlan

Agree = Callable[[Tensor], Tensor]
"""Gives one rank's tensor to all."""


@dataclass(kw_only=True)
class VisualTokens:
    """The visual part of a row, images one after the other."""

    tokens: Tensor
    """[V, C]."""
    newline: Tensor
    """bool [V]."""
    image: Tensor
    """int64 [V], image of each token."""
    lengths: Tensor
    """int64 [I], tokens of each image."""
    scale_counts: Tensor
    """int64 [S], counted windows that chose each scale."""
    balance: Tensor
    """float32 scalar, sum over scales of w_i f_i P_i of the row (Eq. 10 without alpha); 0 where nothing was sampled.
    Without a gradient under ``balance_scope: batch``, whose loss is that of all rows."""
    choice: "ChoiceSums | None" = None
    """What the learned sampler's choices add up to; None where nothing was chosen."""


@dataclass(kw_only=True)
class ChoiceSums:
    """Sums over the counted windows of a row, see ``samplers/balance.py``; they add up over the rows of a batch."""

    probs: Tensor
    """float32 [S], sum of the probabilities of each scale."""
    entropy_within_pictures: Tensor
    """float64 scalar, in nats."""
    gradients: Tensor | None
    """float32 [S, S, G + 1], gradient of each sum of probabilities by the selector; None where it is not needed."""


class _Selector(nn.Linear):
    """Computes in float32, whatever its weights are stored in. Called, not read: Megatron may be gathering them."""

    def forward(self, score: Tensor) -> Tensor:
        return nn.functional.linear(score, self.weight.float(), self.bias.float())


class VisionGuidedSampler(nn.Module):
    """Scores every window against the global view and takes its tokens at the chosen scale."""

    def __init__(self, config: VisionSamplerConfig, cells_per_side: int, init_std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.selector = _Selector(cells_per_side**2, len(config.scales), dtype=dtype)
        nn.init.normal_(self.selector.weight, std=init_std)
        nn.init.zeros_(self.selector.bias)

    def forward(self, features: Tensor, newline: Tensor, plan: WindowPlan, agree: Agree | None = None) -> VisualTokens:
        """Choose scales and gather the tokens.

        Args:
            features: [t, g * g, C], projected features of every tile, global views first of their image.
            newline: [C], the newline embedding.
            plan: the row's candidates, on the device of ``features``.
            agree: gives the choice of one rank to all that hold the same features; None where there is one.
        """
        scores = self.scores(features, plan)
        logits = self.selector_logits(scores)
        probs = logits.softmax(-1)
        choice = first_argmax(logits)
        choice = choice if agree is None else agree(choice)
        taken = (plan.scale == NEWLINE_SCALE) | (plan.scale == nn.functional.pad(choice, (0, 1))[plan.window])
        gate = nn.functional.pad(self._gate(probs, choice), (0, 1), value=1.0)
        picked = taken.nonzero().squeeze(1)
        source = token_source(features, newline, plan, self.config.scales)
        tokens = source[plan.source[picked]] * gate[plan.window[picked], None].to(source.dtype)
        image = plan.image[picked]
        chosen = nn.functional.one_hot(choice, len(self.config.scales)) * plan.window_counted[:, None]
        return VisualTokens(
            tokens=tokens,
            newline=plan.newline[picked],
            image=image,
            lengths=torch.bincount(image, minlength=plan.num_images),
            scale_counts=chosen.sum(0),
            balance=self._balance(probs, chosen, plan),
            choice=self._choice_sums(scores, probs, chosen, plan),
        )

    def scores(self, features: Tensor, plan: WindowPlan) -> Tensor:
        """Scores of every window (Eq. 1), float32 [M, g * g]; finite and unused where no cell is valid."""
        tiles, cells, channels = features.shape
        g, w = plan.cell_valid.shape[1], self.config.window
        grid = features.view(tiles, g // w, w, g // w, w, channels)
        if self.config.score_pooling == "max":
            pooled = _max_of_cells(_masked(grid, plan, w, w, -torch.inf)).float()
            pooled = pooled.masked_fill(pooled == -torch.inf, 0.0)
        else:
            count = plan.cell_valid.view(tiles, g // w, w, g // w, w).sum((2, 4))
            pooled = _masked(grid, plan, w, w, 0.0).float().sum((2, 4)) / count.clamp(min=1)[..., None]
        context = features.float()[plan.context_tile]
        score = torch.baddbmm(
            features.new_zeros((), dtype=torch.float32),
            pooled.view(tiles, -1, channels),
            context.transpose(1, 2),
            beta=0.0,
            alpha=channels**-0.5 if self.config.score_scale is None else self.config.score_scale,
        )
        if self.config.center_scores:
            score = score - _picture_means(score, plan)
        return score.view(-1, cells)

    def selector_logits(self, scores: Tensor) -> Tensor:
        """Scale logits Z of every window, float32 [M, S]."""
        logits: Tensor = self.selector(scores)
        return logits

    def _gate(self, probs: Tensor, choice: Tensor) -> Tensor:
        """Factor of each window's tokens, float32 [M] (Eq. 2 and its alternatives)."""
        top = probs.gather(1, choice[:, None]).squeeze(1)
        if self.config.gate == "switch":
            return top
        if not self.training:
            return torch.ones_like(top)
        return top if self.config.gate == "paper" else top / top.detach()

    def _balance(self, probs: Tensor, chosen: Tensor, plan: WindowPlan) -> Tensor:
        """Sum of w_i f_i P_i over the row's counted windows (Eq. 4, 5, 10)."""
        if self.config.balance_scope == "batch":  # whose gradient comes from the sums of all rows
            probs = probs.detach()
        windows = max(plan.num_windows, 1)
        fraction = chosen.sum(0).float() / windows
        mean_probs = (probs * plan.window_counted[:, None]).sum(0) / windows
        if self.config.balance_weights is not None:
            fraction = fraction * fraction.new_tensor(self.config.balance_weights)
        return (fraction * mean_probs).sum()

    def _choice_sums(self, scores: Tensor, probs: Tensor, chosen: Tensor, plan: WindowPlan) -> ChoiceSums:
        scores, probs, weight = scores.detach(), probs.detach(), self.selector.weight
        learns = torch.is_grad_enabled() and weight.requires_grad and self.config.balance_scope == "batch"
        return ChoiceSums(
            probs=(probs * plan.window_counted[:, None]).sum(0),
            entropy_within_pictures=entropy_within_pictures(chosen, plan.context_tile),
            gradients=prob_sum_gradients(scores, probs, plan.window_counted) if learns else None,
        )


def _picture_means(score: Tensor, plan: WindowPlan) -> Tensor:
    """Mean score of the counted windows of each tile's picture, [t, 1, g * g], from scores [t, K, g * g].

    A product with the tiles that share a picture: sums in a fixed order, where atomic additions would have none.
    """
    counted = plan.window_counted.view(len(score), -1, 1)
    same_picture = (plan.context_tile[:, None] == plan.context_tile).to(score.dtype)
    total = same_picture @ (score * counted).sum(1)
    return (total / (same_picture @ counted.sum(1).to(score.dtype)).clamp(min=1))[:, None]


def first_argmax(logits: Tensor) -> Tensor:
    """Index of the largest logit of each row, the first (finest) of equals; ``torch.argmax`` leaves ties open.

    NaN equals nothing and gives the last index: the loss shows it, where an index out of range would end the process.
    """
    before = (logits == logits.amax(-1, keepdim=True)).int().cumsum(-1).eq(0).sum(-1)
    return before.clamp(max=logits.shape[-1] - 1)


def baseline_tokens(features: Tensor, newline: Tensor, plan: WindowPlan) -> VisualTokens:
    """LLaVA-NeXT's visual tokens, for a plan without scales (the sampler is off)."""
    return VisualTokens(
        tokens=token_source(features, newline, plan, [])[plan.source],
        newline=plan.newline,
        image=plan.image,
        lengths=torch.bincount(plan.image, minlength=plan.num_images),
        scale_counts=plan.image.new_zeros(0),
        balance=features.new_zeros((), dtype=torch.float32),
    )


def token_source(features: Tensor, newline: Tensor, plan: WindowPlan, scales: list[str]) -> Tensor:
    """Every token a window could become, [rows, C]: the cells, each pooled scale, the newline (DS[i] of Eq. 1).

    A cell outside the picture never wins a maximum.
    """
    tiles, _, channels = features.shape
    g = plan.cell_valid.shape[1]
    blocks = [features.reshape(-1, channels)]
    for scale in scales:
        if scale in ("1x1", "discard"):
            continue
        kh, kw = map(int, scale.split("x"))
        grid = features.view(tiles, g // kh, kh, g // kw, kw, channels)
        blocks.append(_max_of_cells(_masked(grid, plan, kh, kw, -torch.inf)).reshape(-1, channels))
    return torch.cat([*blocks, newline[None].to(features.dtype)])


def _max_of_cells(grid: Tensor) -> Tensor:
    """[t, g/kh, kh, g/kw, kw, C] -> [t, g/kh, g/kw, C], the maximum over the kh * kw cells."""
    # Over one dimension at a time: on a CPU torch takes some 20 times longer over both at once.
    return grid.amax(4).amax(2)


def _masked(grid: Tensor, plan: WindowPlan, kh: int, kw: int, value: float) -> Tensor:
    """``grid`` [t, g/kh, kh, g/kw, kw, C] with cells outside the picture set to ``value``."""
    if plan.all_valid:
        return grid
    tiles, g, _ = plan.cell_valid.shape
    valid = plan.cell_valid.view(tiles, g // kh, kh, g // kw, kw, 1)
    return grid.masked_fill(~valid, value)
