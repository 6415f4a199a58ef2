"""Folders with one JSON file for each diagram or problem, as multiple-choice sets publish them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.errors import SampleError
from data_pipeline.sources.base import RawSample, Source
from data_pipeline.sources.json_records import read_json
from data_pipeline.sources.layout import find_image
from data_pipeline.sources.prompts import multiple_choice, text_of


@dataclass(frozen=True)
class ChoiceQuestion:
    """One question as the files have it; nothing is checked yet."""

    id: str
    file: Path
    image_folder: Path
    image: Any
    question: Any
    options: Any
    answer: Any
    """Index of the right option, from 0."""


class MultipleChoice(Source):
    """One sample for each question.

    Args:
        questions: all of them, held in memory (these sets have some ten thousand).
        name: the name under which the samples go.
        published: the number of questions that the authors publish.
    """

    def __init__(self, questions: Sequence[ChoiceQuestion], name: str, published: int | None = None):
        self.questions = questions
        digest = hashlib.sha256()
        for question in questions:
            asked = [question.id, question.image, question.question, question.options, question.answer]
            digest.update(json.dumps(asked).encode())
        super().__init__(name, (question.id for question in questions), digest.hexdigest(), published)

    def read(self, index: int) -> RawSample:
        """See ``Source``."""
        question = self.questions[index]
        text = text_of({"question": question.question}, "question", "no question")
        if not isinstance(question.options, list):
            raise SampleError("bad options", f"expected a list of options, not {question.options!r}")
        if isinstance(question.answer, bool) or not isinstance(question.answer, int):
            raise SampleError("no answer", f"expected the index of an option, not {question.answer!r}")
        options = [
            text_of({f"options[{i}]": v}, f"options[{i}]", "bad options") for i, v in enumerate(question.options)
        ]
        image = find_image(question.image_folder, question.image, "image")
        return RawSample([image], multiple_choice(text, options, question.answer))

    def place(self, index: int) -> str:
        """See ``Source``."""
        return f"{self.questions[index].file}: question {self.id(index)!r}"


def read_folder(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every JSON file of a folder with its object, in the order of their names as numbers where they are.

    Raises:
        ValueError: a file is broken or holds no object; there is none.
    """

    def order(file: Path) -> tuple[int, str]:
        number = file.name.split(".")[0]
        return (int(number) if number.isdecimal() else 2**62, file.name)

    files = sorted(folder.glob("*.json"), key=order)
    if not files:
        raise ValueError(f"{folder}: no .json files")
    records = []
    for file in tqdm(files, desc=f"reading {folder.name}", delay=2, leave=False):
        record = read_json(file)
        if not isinstance(record, dict):
            raise ValueError(f"{file}: expected an object, not {type(record).__name__}")
        records.append((file, record))
    return records
