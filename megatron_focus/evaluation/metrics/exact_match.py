"""Exact match as in SQuAD (Rajpurkar et al. 2016, section 6.1): case, punctuation and articles are ignored."""

import re
import string
from collections.abc import Sequence

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words separated by one space."""
    plain = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", plain).split())


def exact_match(said: str, answers: Sequence[str]) -> float:
    """1 where what was said equals one of the answers after normalising, else 0."""
    return float(normalised(said) in {normalised(answer) for answer in answers})
