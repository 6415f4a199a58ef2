"""What the samplers really keep of a sample, as far as nobody can know it before the step.

How much this differs from sample to sample is ASSUMED: nobody measured it on a trained model. Two sizes show what
follows from it.

Shapes: n samples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.loading.planning import StepPlanner, StepSamples

WINDOW_CELLS = 16
"""Cells of a window of the vision-guided sampler."""
WINDOW_SPREAD = 0.41
"""Standard deviation of the share that a window keeps when 16, 4 and 1 of its tokens are equally likely."""


@dataclass(frozen=True, kw_only=True)
class Surprise:
    """How far the shares kept differ from what is expected."""

    windows: bool
    """Each window chooses its scale by itself."""
    pictures: float
    """Standard deviation of what a picture as a whole keeps, in shares of its visual tokens."""
    text: float
    """Standard deviation of what the text-guided sampler leaves, in shares of the tokens that entered."""


SURPRISES = {
    "none": Surprise(windows=False, pictures=0.0, text=0.0),
    "windows": Surprise(windows=True, pictures=0.0, text=0.03),
    "pictures": Surprise(windows=True, pictures=0.1, text=0.05),
}
"""``none`` keeps what is expected. With ``windows`` the windows of a picture choose independently of each other. With
``pictures`` some pictures keep much more than others as well: two thirds 35 % to 55 % where 45 % are expected."""


def realised_cost(
    planner: StepPlanner, samples: StepSamples, place: int, surprise: Surprise, random: np.random.Generator
) -> NDArray[np.int64]:
    """int64 [n], the cost of each sample of a step.

    Args:
        planner: gives lengths and cost.
        samples: of the step.
        place: where the step begins in the order.
        surprise: how far from the expected.
        random: draws it.
    """
    if surprise == SURPRISES["none"]:
        return samples.cost
    text, baseline = planner.text[samples.index], planner.visual[samples.index]
    kept = (samples.expected - text) / np.maximum(baseline, 1)
    spread = np.full(len(kept), surprise.pictures)
    if surprise.windows:
        spread = np.hypot(spread, WINDOW_SPREAD / np.sqrt(np.maximum(baseline / WINDOW_CELLS, 1)))
    kept = np.clip(kept + spread * random.standard_normal(len(kept)), 1 / WINDOW_CELLS, 1.0)
    visual = np.rint(kept * baseline).astype(np.int64)
    cost, keys = planner.cost, planner.manifest.keys[samples.index]
    if cost.expected_drop is None:
        before, left = np.ones(len(kept)), np.ones(len(kept))
    else:
        before, left = cost.expected_drop(keys, place // planner.global_batch_size)
        # What is not dropped by gamma = 1 is not dropped by surprise either.
        left = np.where(left < 1, np.clip(left + surprise.text * random.standard_normal(len(left)), 0.05, 1.0), left)
    tiles = planner.tiles[samples.index]
    labels = planner.manifest.loss_tokens[samples.index]
    return cost.of_lengths(tiles=tiles, entering=text + visual, left=text + left * visual, labels=labels, before=before)
