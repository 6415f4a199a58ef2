"""The answers of one part, a JSON line each, appended as they come and found again after a kill."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_focus.evaluation.visual_tokens import VisualTokenCounts


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question with what became of it."""

    index: int
    """Of the question in its file, from 0."""
    question_id: str | int | None
    answer: str | None = None
    """What the model said; None where it was not asked."""
    not_asked: str | None = None
    """Why."""
    visual_tokens: VisualTokenCounts = field(default_factory=VisualTokenCounts)
    cut: bool = False
    """Whether the answer ended at the most tokens allowed."""
    seconds: float = 0.0


def append_answers(file: Path, answers: Iterable[Answered]) -> None:
    """Write lines to the end of a file, onto the disk before this returns; a torn last line is removed first."""
    data = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers).encode()
    with open(file, "a+b") as stream:
        _remove_torn_line(stream)
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _remove_torn_line(stream: Any) -> None:
    """What stands behind the last line break was being written when the program was killed."""
    end = stream.seek(0, os.SEEK_END)
    if not end or (stream.seek(end - 1), stream.read(1))[1] == b"\n":
        return
    stream.seek(0)
    stream.truncate(stream.read().rfind(b"\n") + 1)


def read_answers(files: Iterable[Path]) -> dict[int, Answered]:
    """The answers of some files by the question's index; one that was asked stands before one that was not.

    A torn last line is passed over.

    Raises:
        ValueError: a line is none of ours; names file and line.
    """
    found: dict[int, Answered] = {}
    for file in files:
        *lines, _ = file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            answer = _parse(line, file, number)
            if answer.index not in found or answer.not_asked is None:
                found[answer.index] = answer
    return found


def _parse(line: bytes, file: Path, number: int) -> Answered:
    try:
        row = json.loads(line)
        return Answered(**row | {"visual_tokens": VisualTokenCounts(**row["visual_tokens"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}, line {number}: damaged ({error}); remove the line and run again") from error
