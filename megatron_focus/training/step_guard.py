"""Which updates are not applied: those that would put NaN into the weights, or a spike."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

_MEMORY = 0.98  # of the running mean: about the last 50 steps


@dataclass
class StepGuard:
    """Judges each step before its update; equal inputs on all ranks give the same verdict on all."""

    spike_factor: float | None = None
    """A loss above this many times the usual one is a spike; None accepts every finite loss."""
    most_in_a_row: int = 0
    """More skipped steps than this, one after another, are no accident."""
    usual_loss: float | None = None
    """Running mean of the loss over applied steps; None before the first."""
    in_a_row: int = 0
    """Skipped steps since the last applied one."""

    def objection(self, loss: float, grad_norm: float) -> str | None:
        """Why this step's update must not be applied; None where it may. Counts the step."""
        if not math.isfinite(loss):
            reason = f"the loss is {loss}"
        elif not math.isfinite(grad_norm):
            reason = f"the gradient norm is {grad_norm}"
        elif self.spike_factor and self.usual_loss is not None and loss > self.spike_factor * self.usual_loss:
            reason = f"the loss is {loss:.4f}, {loss / self.usual_loss:.1f} times the usual {self.usual_loss:.4f}"
        else:
            usual = loss if self.usual_loss is None else self.usual_loss
            self.usual_loss = _MEMORY * usual + (1 - _MEMORY) * loss
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        return reason

    @property
    def has_enough(self) -> bool:
        """Whether the run should stop."""
        return self.in_a_row > self.most_in_a_row


def weights_are_finite(chunks: Iterable[torch.nn.Module], device: torch.device) -> bool:
    """Whether no weight of any rank is NaN or infinite (collective over the world)."""
    sound = all(bool(torch.isfinite(weight).all()) for chunk in chunks for weight in chunk.parameters())
    answer = torch.tensor([int(sound)], dtype=torch.int32, device=device)
    torch.distributed.all_reduce(answer, op=torch.distributed.ReduceOp.MIN)
    return bool(answer)
