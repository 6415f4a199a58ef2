"""ANLS, average normalised Levenshtein similarity (Biten et al. 2019, Eq. 1), with DocVQA's threshold.

One minus the edits that lead from one text to the other, over the length of the longer one; 0 from half of it on. Case
and repeated spaces are ignored, as in DocVQA's evaluation (Mathew et al. 2021).
"""

from collections.abc import Sequence

THRESHOLD = 0.5
"""Normalised distance from which on an answer counts nothing."""


def edit_distance(first: str, second: str) -> int:
    """Fewest insertions, deletions and substitutions of characters (Levenshtein 1966)."""
    row = list(range(len(second) + 1))  # distances of the empty text
    for i, mine in enumerate(first, start=1):
        corner, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            change = corner + (mine != other)
            corner, row[j] = row[j], min(change, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def _similarity(said: str, answer: str) -> float:
    longest = max(len(said), len(answer))
    distance = edit_distance(said, answer) / longest if longest else 0.0
    return 1 - distance if distance < THRESHOLD else 0.0


def anls(said: str, answers: Sequence[str]) -> float:
    """The best similarity with one of the answers, from 0 to 1."""
    mine = " ".join(said.lower().split())
    return max(_similarity(mine, " ".join(answer.lower().split())) for answer in answers)
