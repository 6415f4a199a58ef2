"""Questions of a benchmark, in a layout of this project's own; no published file has it.

A file of JSON lines, or one JSON list. Each question has ``question_id``, ``text`` (all that is asked, verbatim), the
true ``answer`` or ``answers``, maybe ``image`` (a name in the folder of images, or a list of names) and, for multiple
choice, ``options``. Other keys are ignored.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from megatron_focus.evaluation.metrics.registry import Metric

ON_BAD_QUESTION = ("error", "skip")
"""What to do about a question that cannot be asked."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question that can be asked."""

    index: int
    """Its place among the questions of the file, from 0: several may have the same id."""
    place: str
    """File, line and id, for messages."""
    id: str | int
    text: str
    images: tuple[str, ...]
    """Names in the folder of images."""
    answers: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BadQuestion:
    """One that cannot be asked."""

    index: int
    id: str | int | None
    """None where it cannot be read."""
    reason: str
    """Names file, line and id."""


def read_questions(file: Path, metric: Metric) -> list[Question | BadQuestion]:
    """All questions of a file in its order.

    Raises:
        ValueError: the file is not there, is no text, is a damaged list, or has no question.
        OSError: the storage that it lies on cannot be read, now at least.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    rows = _list_rows(file, text) if text.lstrip().startswith("[") else _line_rows(file, text)
    questions = [_question(index, place, row, metric) for index, (place, row) in enumerate(rows)]
    if not questions:
        raise ValueError(f"{file}: has no question")
    return questions


def _list_rows(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    for number, row in enumerate(rows, start=1):
        yield f"{file}, entry {number}", row


def _line_rows(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Rows; a ValueError in the place of one that is not JSON."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            row = error
        yield f"{file}, line {number}", row


def _question(index: int, place: str, row: Any, metric: Metric) -> Question | BadQuestion:
    """The question of a row."""
    name = row.get("question_id") if isinstance(row, dict) else None
    try:
        if isinstance(row, ValueError):
            raise ValueError(f"not JSON ({row})")
        if not isinstance(row, dict):
            raise ValueError(f"is {row!r}, not an object")
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise ValueError(f"question_id is {name!r}; it must be a text or a number")
        place = f"{place}, question {name}"
        question = Question(
            index=index,
            place=place,
            id=name,
            text=_text(row),
            images=_images(row.get("image")),
            answers=_answers(row),
            options=_texts("options", row.get("options", [])),
        )
        if problem := metric.problem(question.answers, question.options):
            raise ValueError(problem)
    except ValueError as error:
        return BadQuestion(index=index, id=name if isinstance(name, str | int) else None, reason=f"{place}: {error}")
    return question


def _text(row: dict[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"text is {text!r}; it must be what is asked")
    return text


def _images(value: Any) -> tuple[str, ...]:
    """Names of images: none, one, or a list."""
    if value is None:
        return ()
    names = (value,) if isinstance(value, str) else _texts("image", value)
    for name in names:
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"image {name!r} must be a name inside the folder of images")
    return names


def _answers(row: dict[str, Any]) -> tuple[str, ...]:
    """The true answers: ``answer``, or ``answers`` as texts or as objects such as ``{"answer": "cat"}``."""
    if ("answer" in row) == ("answers" in row):
        raise ValueError("needs one of answer and answers")
    given = [row["answer"]] if "answer" in row else row["answers"]
    if isinstance(given, list):
        given = [value.get("answer") if isinstance(value, dict) else value for value in given]
        given = [str(value) if type(value) in (int, float) else value for value in given]
    answers = _texts("answer" if "answer" in row else "answers", given)
    if not answers:
        raise ValueError("answers is empty")
    return answers


def _texts(key: str, value: Any) -> tuple[str, ...]:
    texts: Sequence[Any] = value if isinstance(value, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key} is {value!r}; it must be texts")
    return tuple(texts)
