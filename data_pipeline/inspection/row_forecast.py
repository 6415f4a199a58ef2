"""What packing makes of a data set: how many rows a step has, and how full they are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.loading.planning import StepPlanner


@dataclass(frozen=True, kw_only=True)
class RowForecast:
    """Some steps of the first epoch, planned as the loader plans them.

    Shapes: s steps, R rows of all of them together.
    """

    steps_per_epoch: int
    """Rounded up: the last step of an epoch goes on in the next one."""
    rows_per_step: NDArray[np.int64]
    """int64 [s]."""
    samples_per_row: NDArray[np.int64]
    """int64 [R]."""
    tokens_per_row: NDArray[np.int64]
    """int64 [R], expected after compression."""
    budget: int
    """Tokens that a row may be expected to hold."""
    unusable: int
    """Samples of these steps that are longer than a row, or have an image without a visual token."""

    @property
    def fill(self) -> NDArray[np.float64]:
        """float64 [R], how full each row is expected to be."""
        return self.tokens_per_row / self.budget

    @property
    def steps(self) -> int:
        """s."""
        return len(self.rows_per_step)


def forecast_rows(planner: StepPlanner, kept_ratio: float, max_steps: int = 200) -> RowForecast:
    """Plan the first epoch, or ``max_steps`` of its steps at equal distances.

    Args:
        planner: plans a step.
        kept_ratio: share of the visual tokens that is expected to enter the language model.
        max_steps: steps that are planned at most.
    """
    batch = planner.global_batch_size
    steps_per_epoch = -(-planner.order.samples_per_epoch // batch)
    numbers = np.linspace(0, steps_per_epoch - 1, min(steps_per_epoch, max_steps)).round().astype(int)
    plans = [planner.plan(number * batch, kept_ratio) for number in numbers.tolist()]
    return RowForecast(
        steps_per_epoch=steps_per_epoch,
        rows_per_step=np.array([len(plan.rows) for plan in plans], dtype=np.int64),
        samples_per_row=np.array([len(row) for plan in plans for row in plan.rows], dtype=np.int64),
        tokens_per_row=np.array([tokens for plan in plans for tokens in plan.expected], dtype=np.int64),
        budget=planner.budget,
        unusable=sum(len(plan.unusable) for plan in plans),
    )
