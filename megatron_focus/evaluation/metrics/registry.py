"""The metrics by name, and what each needs of a question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from megatron_focus.evaluation.metrics.anls import anls
from megatron_focus.evaluation.metrics.exact_match import exact_match
from megatron_focus.evaluation.metrics.multiple_choice import choice_accuracy, option_letters, right_letter
from megatron_focus.evaluation.metrics.relaxed_accuracy import relaxed_accuracy
from megatron_focus.evaluation.metrics.vqa_accuracy import PEOPLE, vqa_accuracy

Score = Callable[[str, Sequence[str], Sequence[str]], float]
"""What was said, the true answers and the options -> a score from 0 to 1."""


@dataclass(frozen=True)
class Metric:
    """How answers are scored."""

    title: str
    """For people."""
    score: Score
    problem: Callable[[Sequence[str], Sequence[str]], str | None]
    """True answers and options -> why the question cannot be scored; None where it can."""


def _without_options(score: Callable[[str, Sequence[str]], float]) -> Score:
    return lambda said, answers, options: score(said, answers)


def _none(answers: Sequence[str], options: Sequence[str]) -> None:
    """Any answers will do."""


def _ten_people(answers: Sequence[str], options: Sequence[str]) -> str | None:
    if len(answers) == PEOPLE:
        return None
    return f"answers: metric vqa compares with the answers of {PEOPLE} people, here are {len(answers)}"


def _options_and_letter(answers: Sequence[str], options: Sequence[str]) -> str | None:
    if not 2 <= len(options) <= len(ascii_uppercase):
        return f"options: metric choice needs from 2 to {len(ascii_uppercase)}, here are {len(options)}"
    for answer in answers:
        if right_letter(answer, options) is None:
            return f"answer {answer!r} is neither a letter of {option_letters(options)} nor one of the options"
    return None


METRICS = {
    "exact": Metric("exact match", _without_options(exact_match), _none),
    "vqa": Metric("VQA accuracy", _without_options(vqa_accuracy), _ten_people),
    "relaxed": Metric("relaxed accuracy", _without_options(relaxed_accuracy), _none),
    "anls": Metric("ANLS", _without_options(anls), _none),
    "choice": Metric("multiple choice accuracy", choice_accuracy, _options_and_letter),
}
"""By the name that the command line gives."""
