"""AI2D: multiple-choice questions about diagrams of school books (prior.allenai.org/projects/diagram-understanding)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.sources.base import Source, usable_id
from data_pipeline.sources.layout import choose_annotations, existing_folder
from data_pipeline.sources.llava_json import LlavaRecords
from data_pipeline.sources.multiple_choice_files import ChoiceQuestion, MultipleChoice, read_folder

PUBLISHED = {"train": 12_413, "all": 15_501}
LLAVA_FILE = "ai2d_train_12k.jsonl"
TEST_IDS = "ai2d_test_ids.csv"
NO_OPTION = "{}"
"""What some questions have in place of a fourth option."""


class Ai2d(MultipleChoice):
    """One sample for each question.

    Layout, one of:

    - ``questions/0.png.json`` and so on (``imageName``, and ``questions`` by their text with ``abcLabel``,
      ``answerTexts``, ``correctAnswer``, ``questionId``), ``images/0.png``, the authors' ``ai2d_test_ids.csv`` of the
      images whose questions are the benchmark, and ``abc_images/0.png``: the diagrams with letters drawn over their
      labels, which questions with ``abcLabel`` ask about. The authors leave the drawing to the user; InternVL and
      others publish the drawn images.
    - ``ai2d_train_12k.jsonl``, InternVL's version in LLaVA's form, with the images relative to the folder.

    Count: 15,501 questions, 12,413 of them for training. Prompts: lettered options and LLaVA's suffix for options;
    the answer is a letter. InternVL's file keeps its own.
    """

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        file: str | None = None,
        images: str = ".",
        split: str = "train",
        abc_questions: str = "use",
        name: str = "ai2d",
    ) -> Source:
        """Open the data set's folder.

        Args:
            folder: see the class.
            file: ``questions`` or the .jsonl, where both are there.
            images: where ``images`` and ``abc_images`` are, or what the paths of the .jsonl are relative to; itself
                relative to the folder.
            split: ``train`` leaves out the questions about the images of ``ai2d_test_ids.csv``; ``all`` has every one.
            abc_questions: ``use`` or ``leave_out`` the questions about lettered diagrams; without them there is no
                published count.
            name: the name under which the samples go.

        Raises:
            ValueError: the files are not there or broken.
        """
        chosen = choose_annotations(folder, ["questions", LLAVA_FILE], file)
        if split not in PUBLISHED:
            raise ValueError(f"split={split}: expected one of {', '.join(PUBLISHED)}")
        if abc_questions not in ("use", "leave_out"):
            raise ValueError(f"abc_questions={abc_questions}: expected use or leave_out")
        if chosen == LLAVA_FILE:
            if split != "train" or abc_questions != "use":
                raise ValueError(f"{folder / chosen}: split and abc_questions are for the authors' files")
            return LlavaRecords(folder / chosen, folder / images, name, PUBLISHED["train"])
        pictures = folder / images
        existing_folder(pictures / "images", "image folder")
        if abc_questions == "use" and not (pictures / "abc_images").is_dir():
            raise ValueError(
                f"{pictures / 'abc_images'}: no such folder; it has the diagrams with letters drawn over their labels. "
                "Without it, leave out the questions about them with abc_questions=leave_out"
            )
        left_out = _test_ids(folder / TEST_IDS) if split == "train" else set()
        questions = [
            question
            for path, record in read_folder(folder / chosen)
            if path.name.split(".")[0] not in left_out
            for question in _questions(path, record, pictures, abc_questions == "use")
        ]
        return cls(questions, name, PUBLISHED[split] if abc_questions == "use" else None)


def _test_ids(file: Path) -> set[str]:
    try:
        return set(file.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError, MemoryError) as error:
        why = "too large" if isinstance(error, MemoryError) else error
        raise ValueError(
            f"{file}: cannot be read ({why}); it names the benchmark's images, which training leaves out. "
            "Get it from the authors, or take every question with split=all"
        ) from error


def _questions(file: Path, record: dict[str, Any], folder: Path, use_abc: bool) -> Iterator[ChoiceQuestion]:
    questions = record.get("questions")
    if not isinstance(questions, dict) or not all(isinstance(data, dict) for data in questions.values()):
        raise ValueError(f"{file}: key questions: expected an object of objects")
    for number, (text, data) in enumerate(questions.items()):
        if data.get("abcLabel") is True and not use_abc:
            continue
        options, answer = data.get("answerTexts"), data.get("correctAnswer")
        if isinstance(options, list) and options[-1:] == [NO_OPTION] and answer != len(options) - 1:
            options = options[:-1]
        yield ChoiceQuestion(
            id=usable_id(data.get("questionId")) or f"{file.name.removesuffix('.json')}-{number}",
            file=file,
            image_folder=folder / ("abc_images" if data.get("abcLabel") is True else "images"),
            image=record.get("imageName"),
            question=text,
            options=options,
            answer=answer,
        )
