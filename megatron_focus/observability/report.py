"""How a step's metrics reach people: one progress line, and TensorBoard scalars."""

import sys
from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from megatron_focus.observability.metrics import StepMetrics

_RETRY_STEPS = 100
"""Steps until the next try to write events, after one that failed: each begins a file."""


def progress_line(step: int, steps: int, metrics: StepMetrics, mfu: float | None, skipped: int) -> str:
    """One line that a person can follow while a run goes on; ``skipped`` counts the samples left out so far."""
    shares = " ".join(f"{name} {share:.0%}" for name, share in metrics.scale_shares.items())
    parts = [
        f"step {step}/{steps}",
        f"loss {metrics.loss:.4f}",
        f"balance {metrics.balance_loss:.4f}",
        f"visual tokens {metrics.kept_by_vision:.0%} then {metrics.kept_by_text:.0%} = {metrics.effective_tokens:.0%}",
        f"scales {shares}" if shares else "",
        f"grad norm {metrics.grad_norm:.3f}",
        f"lr {metrics.lr:.2e}",
        f"{metrics.tokens_per_second:,.0f} tokens/s",
        f"MFU {mfu:.1%}" if mfu is not None else "",
        f"{metrics.seconds:.2f} s",
        f"{skipped:,} samples left out" if skipped else "",
        f"SKIPPED: {metrics.skipped}" if metrics.skipped else "",
    ]
    return " | ".join(part for part in parts if part)


class TensorBoard:
    """Writes a step's scalars. A full disk costs some of them, and never the run."""

    def __init__(self, folder: str, first_step: int) -> None:
        """``first_step`` hides what an interrupted run wrote for that step and later ones."""
        self.folder, self._next_try = folder, first_step
        self._writer: SummaryWriter | None = None

    def write(
        self, step: int, metrics: StepMetrics, mfu: float | None, left_out: Mapping[str, int], skipped_steps: int = 0
    ) -> None:
        """Write the scalars of training step ``step`` (from 1).

        ``left_out`` counts samples by reason and ``skipped_steps`` the updates that were not applied, both so far.
        """
        if self._writer is None and step < self._next_try:
            return
        scalars = {
            "loss/lm": metrics.loss,
            "loss/balance": metrics.balance_loss,
            "tokens/kept by vision sampler": metrics.kept_by_vision,
            "tokens/kept by text sampler": metrics.kept_by_text,
            "tokens/effective": metrics.effective_tokens,
            "tokens/loss tokens": metrics.totals["loss_tokens"],
            "train/grad norm": metrics.grad_norm,
            "train/learning rate": metrics.lr,
            "train/microbatches": metrics.totals["microbatches"],
            "train/microbatches without a sample": metrics.totals["fillers"],
            "train/skipped steps so far": float(skipped_steps),
            "train/samples": metrics.totals["samples"],
            "data/left out": metrics.totals["skipped"],
            "data/packing fill": metrics.packing_fill,
            "data/rows over budget": metrics.totals["over_budget"],
            "data/wait share": metrics.data_wait_share,
            "speed/tokens per second": metrics.tokens_per_second,
            "speed/seconds per step": metrics.seconds,
        } | {f"scales/{name}": share for name, share in metrics.scale_shares.items()}
        if metrics.scale_probs:
            scalars |= {f"scales/mean probability of {name}": prob for name, prob in metrics.mean_probs.items()}
            scalars |= {
                "choice/bits by picture": metrics.choice_by_picture,
                "choice/bits by region within a picture": metrics.choice_by_region,
                "choice/within-picture share": metrics.choice_within_pictures,
            }
        scalars |= {f"data/samples of {name}": float(count) for name, count in metrics.samples_by_source.items()}
        scalars |= {f"data/left out so far: {reason}": float(count) for reason, count in left_out.items()}
        if mfu is not None:
            scalars["speed/MFU"] = mfu
        try:
            # One that has failed once fails for ever.
            self._writer = self._writer or SummaryWriter(self.folder, purge_step=step)
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            self._writer, self._next_try = None, step + _RETRY_STEPS
            print(f"{self.folder}: no events until step {self._next_try}: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Flush and close the event file."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            print(f"{self.folder}: the last events are lost: {error}", file=sys.stderr, flush=True)
