"""Accuracy in multiple choice: the option is found in what was said, then compared.

The steps are those of ScienceQA's evaluation in LLaVA (Liu et al. 2023: a letter alone, "A. ...", "The answer is A."),
then the rules of MMBench (Liu et al. 2023, section 4.2, without its language model): one letter among the words, one
option's text in the answer. Where no step finds exactly one option, the answer is wrong; nothing is drawn at random.

Other than there, an answer that is one option's text and nothing else means that option: MMBench takes the article of
"A dog" for the letter A, and LLaVA's evaluation knows letters alone, so that "5" is none of 3 and 5.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase

_BEGINS = re.compile(r"\(?([A-Z])(?:[.):,](?:\s|$)|\)|$)")
_ANSWER_IS = re.compile(r"(?i:answer is:?) *\(?([A-Z])\b")
_ARTICLE_FROM = 4
"""Words from which on a lone A is taken for an article, as in MMBench."""


def option_letters(options: Sequence[str]) -> str:
    """The letters of the options: A, B, C and so on."""
    return ascii_uppercase[: len(options)]


def chosen_letter(said: str, options: Sequence[str]) -> str | None:
    """The letter of the option that was chosen; None where that is not clear."""
    said, letters = said.strip(), option_letters(options)
    begins = _BEGINS.match(said)
    if begins and begins[1] in letters:
        return begins[1]
    if len(said) == 1 and said.upper() in letters:
        return said.upper()
    if equal := _equal(said, options):
        return equal
    named = set(_ANSWER_IS.findall(said)) & set(letters)
    if len(named) == 1:
        return named.pop()
    return _lone_letter(said, letters) or _quoted(said, options)


def _equal(said: str, options: Sequence[str]) -> str | None:
    """The one option that was said, no more and no less; case, quotes around and a full stop do not matter."""
    for form in (str.lower, _bare):  # as it stands first: punctuation may be all that tells two options apart
        same = [
            letter
            for letter, option in zip(option_letters(options), options, strict=True)
            if form(said) and form(option.strip()) == form(said)
        ]
        if len(same) == 1:
            return same[0]
    return None


def _bare(text: str) -> str:
    """Small letters, without the quotes around and the punctuation after; what is in front may be a sign or a point."""
    return text.lower().lstrip(" \"'(").rstrip(" \"').,:;!?")


def _lone_letter(said: str, letters: str) -> str | None:
    """The one letter that stands among the words, in upper case, maybe with brackets or punctuation."""
    words = said.split()
    alone = {bare for word in words if len(bare := word.strip("().,:")) == 1 and bare in letters}
    if len(words) >= _ARTICLE_FROM and "A" in words:
        alone.discard("A")
    return alone.pop() if len(alone) == 1 else None


def _quoted(said: str, options: Sequence[str]) -> str | None:
    """The one option whose text stands in what was said."""
    within = [
        letter
        for letter, option in zip(option_letters(options), options, strict=True)
        if option.strip() and option.lower() in said.lower()
    ]
    return within[0] if len(within) == 1 else None


def right_letter(answer: str, options: Sequence[str]) -> str | None:
    """The letter that a true answer means: the letter itself or an option's text; None where it is neither."""
    letters = option_letters(options)
    if len(answer) == 1 and answer.upper() in letters:
        return answer.upper()
    return letters[list(options).index(answer)] if answer in options else None


def choice_accuracy(said: str, answers: Sequence[str], options: Sequence[str]) -> float:
    """1 where the chosen option is one of the true answers, else 0."""
    chosen = chosen_letter(said, options)
    return float(chosen is not None and chosen in {right_letter(answer, options) for answer in answers})
