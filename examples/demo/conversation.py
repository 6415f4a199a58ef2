"""What the page shows while one question is answered, moment by moment; knows nothing of the page."""

import tempfile
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

import torch
from PIL import Image

from examples.demo.asking import UNCOMPRESSED, Asker, Measured, Samplers
from examples.demo.comparison import Row, table
from examples.demo.streaming import StoppedError
from examples.demo.upload import read_upload
from megatron_focus.inference.selection_picture import AnsweredQuestion, draw_picture

MAX_QUESTION = 2000
"""Letters of a question."""
COMPARING = "Now the uncompressed model …"
DRAWING = "Drawing what was kept …"
NOTHING_TO_COMPARE = "Done. Both samplers are off: there is nothing to compare with."


@dataclass(frozen=True)
class Request:
    """What somebody asks."""

    picture: Path | None
    question: str
    samplers: Samplers
    compare: bool
    """Whether the uncompressed model answers too, afterwards."""


@dataclass(frozen=True)
class Shown:
    """What the page shows at one moment."""

    status: str = ""
    """What is being done."""
    error: str = ""
    """A sentence where something went wrong."""
    answer: str = ""
    plain_answer: str = ""
    """The uncompressed model's."""
    rows: tuple[Row, ...] = ()
    selection: Image.Image | None = None
    """The picture of what was kept."""


def respond(asker: Asker, request: Request, stop: Event) -> Iterator[Shown]:
    """Answer, let the uncompressed model answer, draw what was kept; errors end it with a sentence.

    Args:
        asker: the model.
        request: what is asked.
        stop: set by somebody else to end the answer with its next word.
    """
    shown = Shown(status="Answering …")
    yield shown
    try:
        with closing(_steps(asker, request, shown, stop)) as steps:
            for shown in steps:
                yield shown
    except StoppedError:
        yield replace(shown, status="Stopped.")
    except ValueError as error:
        yield replace(shown, status="", error=sentence(str(error)))
    except torch.OutOfMemoryError:
        yield replace(shown, status="", error="The memory of the device is used up: try a smaller picture.")
    except Exception:
        traceback.print_exc()  # whoever runs the program can read it there, whoever reads the page cannot
        yield replace(shown, status="", error="The program failed; its terminal says why.")


def _steps(asker: Asker, request: Request, begun: Shown, stop: Event) -> Generator[Shown, None, None]:
    """The moments of a request that goes well.

    Raises:
        ValueError: what is wrong with the request.
    """
    question = request.question.strip()
    if request.picture is None:
        raise ValueError("choose a picture first")
    if not question:
        raise ValueError("type a question first")
    if len(question) > MAX_QUESTION:
        raise ValueError(f"the question has {len(question):,} letters; at most {MAX_QUESTION:,} are read")
    picture = read_upload(request.picture)

    answering = asker.ask(picture, question, request.samplers)
    measured = yield from _growing(answering, lambda text: replace(begun, answer=text), stop)
    layers = asker.release.model.config.text_config.num_hidden_layers
    shown = replace(begun, answer=measured.answer.text, rows=tuple(table(measured, None, layers)), status="")
    # Both are streamed, and the drawing comes last: otherwise the second would run while a browser on the same machine
    # shows what was drawn.
    if request.compare and request.samplers.any_on:
        shown = yield from _compared(asker, replace(shown, status=COMPARING), picture, question, measured, stop)
    elif request.compare:
        shown = replace(shown, status=NOTHING_TO_COMPARE)
    yield replace(shown, status=DRAWING)
    yield replace(shown, selection=_drawn(picture, question, measured))


def _compared(
    asker: Asker, shown: Shown, picture: Image.Image, question: str, measured: Measured, stop: Event
) -> Generator[Shown, None, Shown]:
    """The uncompressed model answers; returns what is shown then. It may need more memory than there is."""
    yield shown
    layers = asker.release.model.config.text_config.num_hidden_layers
    try:
        answering = asker.ask(picture, question, UNCOMPRESSED)
        plain = yield from _growing(answering, lambda text: replace(shown, plain_answer=text), stop)
    except torch.OutOfMemoryError:
        return replace(shown, status="", error="The uncompressed model needs more memory than the device has.")
    return replace(shown, plain_answer=plain.answer.text, rows=tuple(table(measured, plain, layers)), status="")


def _growing(
    answering: Generator[str, None, Measured], show: Callable[[str], Shown], stop: Event
) -> Generator[Shown, None, Measured]:
    """What is shown while one answer grows; returns the whole answer.

    Raises:
        StoppedError: somebody wants no more.
    """
    text = ""
    with closing(answering):
        while True:
            try:
                text += next(answering)
            except StopIteration as end:
                return end.value
            yield show(text)
            if stop.is_set():
                raise StoppedError


def _drawn(picture: Image.Image, question: str, measured: Measured) -> Image.Image:
    """The picture of what the samplers kept."""
    answered = AnsweredQuestion(question, measured.answer.text, measured.answer.selection[0])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "selection.png"
        draw_picture(picture, [answered], file)
        with Image.open(file) as drawn:
            return drawn.convert("RGB")


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."
