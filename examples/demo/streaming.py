"""Turns work that writes text while it runs into a generator of that text."""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from queue import SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")
Write = Callable[[str], None]


class StoppedError(Exception):
    """Nobody reads the text any more."""


def streamed(executor: Executor, work: Callable[[Write], Result]) -> Generator[str, None, Result]:
    """Run ``work(write)`` in the executor, yield each piece that it writes, and return its result.

    Closing the generator ends the work: its next ``write`` raises ``StoppedError``.

    Raises:
        Exception: what the work raises.
    """
    pieces: SimpleQueue[str | None] = SimpleQueue()
    stopped = threading.Event()

    def write(piece: str) -> None:
        if stopped.is_set():
            raise StoppedError
        pieces.put(piece)

    running = executor.submit(work, write)
    running.add_done_callback(lambda _: pieces.put(None))
    try:
        while (piece := pieces.get()) is not None:
            yield piece
        return running.result()
    finally:
        stopped.set()
        running.cancel()  # does nothing where it has begun
