"""Questions in the words that LLaVA's published data uses, and conversations made of them."""

import math
import string
from collections.abc import Iterable, Sequence
from typing import Any

from data_pipeline.conversations.conversation import IMAGE_TOKEN
from data_pipeline.errors import SampleError

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""Follows the FIRST question of a conversation of short answers, as in LLaVA-1.5's data."""

OPTION_LETTER = "Answer with the option's letter from the given choices directly."
"""Follows the options of every multiple-choice question."""

TRANSCRIBE = "Transcribe the text in the image."
"""For images of text that come without a question."""


def short_answers(pairs: Iterable[tuple[str, str]], num_images: int = 1) -> list[dict[str, str]]:
    """A conversation about images: questions with answers of a word or a phrase."""
    conversation: list[dict[str, str]] = []
    for question, answer in pairs:
        text = question if conversation else f"{IMAGE_TOKEN}\n" * num_images + f"{question}\n{SHORT_ANSWER}"
        conversation += turns(text, answer)
    return conversation


def multiple_choice(question: str, options: Sequence[str], answer: int) -> list[dict[str, str]]:
    """One question about one image with lettered options; the answer is a letter.

    Raises:
        SampleError: there are no options, too many, or the answer is none of them.
    """
    letters = string.ascii_uppercase
    if not 0 < len(options) <= len(letters):
        raise SampleError("bad options", f"expected 1 to {len(letters)} options, not {len(options)}")
    if not 0 <= answer < len(options):
        raise SampleError("no answer", f"answer {answer} is none of the {len(options)} options, counted from 0")
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=False)]
    return turns("\n".join([f"{IMAGE_TOKEN}\n{question}", *lines, OPTION_LETTER]), letters[answer])


def turns(question: str, answer: str) -> list[dict[str, str]]:
    """A question and its answer in LLaVA's form."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def text_of(record: dict[str, Any], key: str, reason: str) -> str:
    """A text or a number of a record, as text.

    Raises:
        SampleError: with that reason, the key is missing or holds something else, or nothing but white space.
    """
    value = record.get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number and not (isinstance(value, str) and value.strip()):
        raise SampleError(reason, f"key {key}: expected a text, not {value!r}")
    return str(value)
