"""VQA accuracy (Antol et al. 2015, section 3; VQAv2, TextVQA and VizWiz use it as well).

An answer that three of ten people gave is right: min(matches / 3, 1), averaged over the ten ways of leaving one of them
out. Before comparing, all answers go through the processing of the challenge's server, in the form of TextVQA's
evaluation, which LLaVA uses too. Its peculiarities are kept, as scores are compared with published ones.
"""

import re
from collections.abc import Sequence

PEOPLE = 10
"""Answers that a question of these data sets has."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# The server means "no digit on either side", but its look-behind has a slip, so only what follows counts.
_PERIOD = re.compile(r"\.(?!\d)")

# Words of the server's list that get their apostrophe back; each in all spellings that lack exactly one of them.
# Those that it spells with a capital I are not here: the text is in lower case when it is looked up.
_CONTRACTIONS = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _spellings() -> dict[str, str]:
    found = {"somebody'd": "somebodyd"}  # a slip of the server's list
    for word in _CONTRACTIONS.split():
        for place, letter in enumerate(word):
            if letter == "'":
                found[word[:place] + word[place + 1 :]] = word
    return found


_FULL_SPELLING = _spellings()


def processed(text: str) -> str:
    """The answer as the challenge's server compares it: punctuation, number words, articles and contractions.

    A sign of punctuation that stands beside a space somewhere in the answer is removed, any other becomes a space.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    result = text
    for sign in _PUNCTUATION:
        apart = f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if apart else " ")
    words = [_DIGITS.get(word, word) for word in _PERIOD.sub("", result).split()]
    return " ".join(_FULL_SPELLING.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(said: str, answers: Sequence[str]) -> float:
    """The share of people that what was said agrees with, from 0 to 1; ``answers`` are those of ten people."""
    mine = processed(said)
    same = [processed(answer) == mine for answer in answers]
    matches = sum(same)
    return sum(min(1.0, (matches - own) / 3) for own in same) / len(same)
