"""The token ids that open and close a user turn, found by encoding conversations that differ around the markers."""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.conversations.chat_templates import IMAGE_TOKEN
from data_pipeline.conversations.conversation import Turn
from data_pipeline.conversations.guarded_tokenizer import GuardedTokenizer
from data_pipeline.conversations.skeleton import Skeleton

_QUESTIONS = ("What is it?", "7", "(a)", "日本", "🙂", "é", "\u200b", "<b>", "-", "'s", IMAGE_TOKEN)
"""Texts whose first and last character take, or do not take, a neighbouring space into their token."""

Markers = set[tuple[int, ...]]
Encoded = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def find_markers(
    guarded: GuardedTokenizer, image: str, skeleton: Callable[[Sequence[Turn]], Skeleton]
) -> tuple[list[list[int]], list[list[int]]]:
    """All id sequences of the last word before a user's text, and of the first word (or special token) behind it.

    Args:
        guarded: encodes.
        image: the guarded image token.
        skeleton: gives the template's text for some turns.

    Raises:
        ValueError: the template puts nothing before or behind a user's text by which it could be found.
    """
    starts: Markers = set()
    ends: Markers = set()
    for question in _QUESTIONS:
        turns = [Turn("user", question), Turn("assistant", "Yes."), Turn("user", question), Turn("assistant", "No.")]
        form = skeleton(turns)
        text, _, questions = form.fill([turn.text.replace(IMAGE_TOKEN, image) for turn in turns])
        encoded = guarded.encode(text)
        for gap, span in zip((0, 2), questions, strict=True):
            opening = _opening(guarded, form.between[gap])
            closing = _closing(guarded, form.between[gap + 1])
            starts.add(_ids(encoded, span[0] - len(opening), span[0], span))
            ends.add(_ids(encoded, span[1], span[1] + len(closing), span))
    if () in starts or () in ends:
        raise ValueError("does not mark where a user's text begins and where it ends; choose a named template")
    # A marker is not needed where a shorter one is found in the same place.
    starts = {ids for ids in starts if not any(ids[-n:] in starts for n in range(1, len(ids)))}
    ends = {ids for ids in ends if not any(ids[:n] in ends for n in range(1, len(ids)))}
    return [list(ids) for ids in sorted(starts)], [list(ids) for ids in sorted(ends)]


def _opening(guarded: GuardedTokenizer, before: str) -> str:
    """The last word of what stands before a user's text, from the special token on that begins it."""
    found = re.search(r"\S+\s*\Z", before)
    word = found[0] if found else ""
    guards = list(guarded.any_guard.finditer(word))
    for guard in reversed(guards):
        if guarded.any_guard.sub("", word[guard.end() :]).strip():  # such as a role's name
            return word[guard.start() :]
    return word[guards[0].start() :] if guards else word


def _closing(guarded: GuardedTokenizer, behind: str) -> str:
    """The first word of what stands behind a user's text, up to its first special token."""
    found = re.match(r"\s*\S+", behind)
    word = found[0] if found else ""
    guard = guarded.any_guard.search(word)
    return word[: guard.end()] if guard else word


def _ids(encoded: Encoded, begin: int, end: int, text: tuple[int, int]) -> tuple[int, ...]:
    """Ids of the tokens with a character of [begin, end) and none of the user's text."""
    ids, starts, ends = encoded
    chosen = (starts < end) & (ends > begin) & ((ends <= text[0]) | (starts >= text[1]))
    return tuple(ids[chosen].tolist())
