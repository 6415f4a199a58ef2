"""Relaxed accuracy of ChartQA (Masry et al. 2022, section 5.1; Methani et al. 2020): numbers may be 5 % off.

Details as in the evaluation code of Pix2Struct (Lee et al. 2023), which most published figures come from: a percent
sign divides by 100, a true answer of 0 and all that is not a number are compared as text, whatever their case.
"""

import math
from collections.abc import Sequence

TOLERANCE = 0.05
"""Largest relative difference of a number that is right."""


def _number(text: str) -> float | None:
    """The number that a text is; None for other text."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _agrees(said: str, answer: str) -> bool:
    mine, true = _number(said), _number(answer)
    if mine is not None and true:
        return abs(mine - true) / abs(true) <= TOLERANCE
    return said.lower() == answer.lower()


def relaxed_accuracy(said: str, answers: Sequence[str]) -> float:
    """1 where what was said agrees with one of the answers, else 0."""
    return float(any(_agrees(said.strip(), answer.strip()) for answer in answers))
