"""Answering the questions of one task: every n-th of the file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from megatron_focus.evaluation.answer_file import Answered, append_answers, read_answers
from megatron_focus.evaluation.asking import ask
from megatron_focus.evaluation.folder import EvaluationFolder
from megatron_focus.evaluation.questions import BadQuestion, Question
from megatron_focus.inference.conversation import Turn, check_text
from megatron_focus.inference.image_source import check_file, open_picture
from megatron_focus.inference.release_folder import Release


@dataclass(frozen=True, kw_only=True)
class Part:
    """One task's share of the work and how it is done."""

    images: Path | None
    """Folder of the images; None where there are none."""
    batch_size: int
    max_new_tokens: int
    on_bad_question: str = "error"
    """One of ``ON_BAD_QUESTION``: stop at a question that cannot be asked, or note why and leave it out."""
    task: int = 0
    tasks: int = 1

    def share(self, questions: Sequence[Question | BadQuestion]) -> list[Question | BadQuestion]:
        """The questions of this task."""
        return list(questions[self.task :: self.tasks])


def check_part(part: Part, questions: Sequence[Question | BadQuestion]) -> None:
    """Look for what will stop this task later, before a model is loaded.

    Raises:
        ValueError: no folder of images though there are images; or naming file, line, id and what is wrong with a
            question, where that is not to be skipped.
        OSError: the storage of the images does not answer.
    """
    if part.images is None:
        if shown := next((q for q in questions if isinstance(q, Question) and q.images), None):
            raise ValueError(f"{shown.place}: has image {shown.images[0]!r}, but no folder of images was given")
    elif not part.images.is_dir():
        raise ValueError(f"{part.images}: no such folder of images")
    if part.on_bad_question == "skip":
        return
    for question in part.share(questions):
        if isinstance(question, BadQuestion):
            raise ValueError(question.reason)
        for name in question.images:
            try:
                check_file(_image_file(part, name))
            except ValueError as error:
                raise ValueError(f"{question.place}: {error}") from error


def answer_part(
    release: Release, part: Part, questions: Sequence[Question | BadQuestion], folder: EvaluationFolder
) -> None:
    """Ask what no task has asked yet of this one's questions, and append the answers to its file.

    Batches are the same after a restart, so that padding cannot make an answer differ from the undisturbed run's.

    Raises:
        ValueError: a question cannot be asked, with ``on_bad_question`` ``error``; a file of answers is damaged.
        OSError: an image cannot be read for now, which says nothing of its question: it is not noted as a bad one.
    """
    mine = part.share(questions)
    done = {index for index, answer in read_answers(folder.part_files()).items() if answer.not_asked is None}
    todo = [question for question in mine if question.index not in done]
    file = folder.part_file(part.task, part.tasks)
    with tqdm(
        total=len(mine),
        initial=len(mine) - len(todo),
        desc="answering",
        unit="question",
        mininterval=0.5 if sys.stderr.isatty() else 30.0,  # in a log file a line now and then is enough
    ) as progress:
        for start in range(0, len(mine), part.batch_size):
            batch = mine[start : start + part.batch_size]
            missing = {question.index for question in batch} - done
            if missing:
                answers = _answer_batch(release, part, batch)
                append_answers(file, [answer for answer in answers if answer.index in missing])
                progress.update(len(missing))


def _answer_batch(release: Release, part: Part, batch: Sequence[Question | BadQuestion]) -> list[Answered]:
    """Answers in the batch's order, of those first that could not be asked."""
    answers, asked = [], []
    for question in batch:
        try:
            asked.append((question, _asked(release, part, question)))
        except ValueError as error:
            if part.on_bad_question == "error":
                raise
            answers.append(Answered(index=question.index, question_id=question.id, not_asked=str(error)))
    replies = ask(release, [put for _, put in asked], part.max_new_tokens) if asked else []
    for (question, _), reply in zip(asked, replies, strict=True):
        answers.append(
            Answered(
                index=question.index,
                question_id=question.id,
                answer=reply.text,
                visual_tokens=reply.tokens,
                cut=reply.cut,
                seconds=reply.seconds,
            )
        )
    return answers


def _asked(release: Release, part: Part, question: Question | BadQuestion) -> Turn:
    """What to ask.

    Raises:
        ValueError: naming file, line and id, if it cannot be asked.
        OSError: naming an image that cannot be read for now.
    """
    if isinstance(question, BadQuestion):
        raise ValueError(question.reason)
    pictures: list[Image.Image] = []
    try:
        check_text(release, question.text)
        for name in question.images:
            pictures.append(open_picture(str(_image_file(part, name))))
    except ValueError as error:
        raise ValueError(f"{question.place}: {error}") from error
    return Turn("user", question.text, tuple(pictures))


def _image_file(part: Part, name: str) -> Path:
    assert part.images is not None  # see check_part
    return part.images / name
