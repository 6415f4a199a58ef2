"""What a sample is expected to cost in a training step, by which rows and ranks are evened out.

Shapes: n samples.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

UNITS = 1000
"""Cost units of a token that passes all layers, quadratic part of attention not counted."""


class ExpectedDrop(Protocol):
    """Says what a model drops inside its language model."""

    def __call__(self, keys: NDArray[np.int64], step: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What is expected of the samples in a step.

        Args:
            keys: int64 [n], see ``sample_key``.
            step: training step, from 0.

        Returns:
            float64 [n], share of the layers that are before the drop, and float64 [n], share of the visual tokens that
            are left after it.
        """


@dataclass(frozen=True, kw_only=True)
class SampleCost:
    """Cost of a sample from its lengths: vision tower, language model before the drop, language model after it.

    A token's pass through the linear parts of all layers costs 1; the coefficients are relative to that. The defaults
    count tokens, for who knows no model.

    Costs come out as whole numbers. Every rank plans every step for itself and must come to the same plan, on whatever
    CPU: sums of whole numbers have no order of summation, and the few steps before them (products and sums of single
    elements, never a power or a matrix product) are rounded the same way everywhere.
    """

    per_tile: float = 0.0
    """Of a tile, in the vision tower and the projector."""
    attention: float = 0.0
    """Of a pair of tokens, in the attention of all layers: times the square of a sample's length."""
    head: float = 0.0
    """Of a labelled token, in the language-model head, which computes no others."""
    expected_drop: ExpectedDrop | None = None
    """None where no layer drops tokens."""

    def __call__(
        self,
        *,
        tiles: NDArray[np.int64],
        text: NDArray[np.int64],
        visual: NDArray[np.int64],
        labels: NDArray[np.int64],
        keys: NDArray[np.int64],
        step: int,
    ) -> NDArray[np.int64]:
        """int64 [n], at least 1, in thousandths of a token's pass (``UNITS``).

        Args:
            tiles: int64 [n].
            text: int64 [n], tokens that are not visual.
            visual: int64 [n], visual tokens that are expected to enter the language model.
            labels: int64 [n], tokens that are learnt.
            keys: int64 [n], see ``sample_key``.
            step: training step, from 0.
        """
        if self.expected_drop is None:
            before, kept = np.ones(len(keys)), np.ones(len(keys))
        else:
            before, kept = self.expected_drop(keys, step)
        left = text + visual * kept
        return self.of_lengths(tiles=tiles, entering=text + visual, left=left, labels=labels, before=before)

    def of_lengths(
        self,
        *,
        tiles: NDArray[np.int64],
        entering: NDArray[np.int64],
        left: NDArray[np.float64],
        labels: NDArray[np.int64],
        before: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """The cost of samples whose lengths are known.

        Args:
            tiles: int64 [n].
            entering: int64 [n], tokens that enter the language model.
            left: float64 [n], tokens that are left after the drop.
            labels: int64 [n], tokens that are learnt.
            before: float64 [n], share of the layers that are before it.
        """
        early = entering + self.attention * entering * entering
        late = left + self.attention * left * left
        total = self.per_tile * tiles + before * early + (1.0 - before) * late + self.head * labels
        units: NDArray[np.int64] = np.maximum(np.rint(total * UNITS), 1).astype(np.int64)
        return units
