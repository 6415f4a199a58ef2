"""Processes that read rows ahead, in order."""

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess

import torch
import torch.multiprocessing  # teaches the pool to hand tensors over in shared memory
from torch import Tensor

from data_pipeline.loading.now_reading import NowReading
from data_pipeline.loading.reading import FinishedRow, ReadRow, RowReader


class ReadingProcesses:
    """Reads rows in forked processes, or in this one if ``num_workers`` is 0 (then only when the result is asked for).

    Forked, because a spawned process would import the trainer's main module, Megatron with it, and hold its own copy of
    the manifest. It is safe: a reading process only runs NumPy, Pillow, the tokenizer and torch on one thread, and
    never touches CUDA or NCCL.

    Args:
        reader: what each process reads with.
        num_workers: their number.
        decodes: whether they decode the images as well.
        pin_memory: whether decoded rows are moved to page-locked memory, from which a GPU copies without waiting.
    """

    def __init__(self, reader: RowReader, num_workers: int, *, decodes: bool, pin_memory: bool):
        self._reader, self._decodes = reader, decodes
        self.num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None
        self._workers: list[BaseProcess] = []
        if num_workers > 0:
            context = get_context("fork")
            self._now = NowReading(context, num_workers)
            self._pool = ProcessPoolExecutor(num_workers, context, _start, (reader, decodes, os.getpid(), self._now))
            others = active_children()
            # The first task starts all processes: now, before the trainer has more threads that a fork would lose.
            with self._naming_the_dead():
                self._pool.submit(os.getpid).result()
            self._workers = [process for process in active_children() if process not in others]
        self._pinning = ThreadPoolExecutor(1, "pin") if pin_memory else None

    def submit(self, indices: Sequence[int]) -> "PendingRow":
        """Begin to read a row.

        Raises:
            RuntimeError: a reading process died; names the sample that it was at.
        """
        if self._pool is None:
            return PendingRow(lambda: _read(self._reader, self._decodes, indices), nullcontext)
        with self._naming_the_dead():
            future = self._pool.submit(_read_here, indices)
        if self._pinning is None:
            return PendingRow(lambda: _received(future.result()), self._naming_the_dead)
        return PendingRow(self._pinning.submit(_pinned, future).result, self._naming_the_dead)

    def close(self) -> None:
        """End the processes; what they have begun is thrown away."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._pinning is not None:
            self._pinning.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def _naming_the_dead(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a reading process died{self._how()}; if the system killed it for want of memory, use fewer "
                "data.num_workers"
            ) from error

    def _how(self) -> str:
        """How the first one died, and what it was reading. The pool ends the others itself, which exit with 0."""
        if not self._workers:
            return " as it started"
        deadline = time.monotonic() + _SECONDS_TO_DIE
        while time.monotonic() < deadline:
            codes = {process: process.exitcode for process in self._workers}
            if dead := [process for process, code in codes.items() if code]:
                break
            if None not in codes.values():
                return ""
            time.sleep(0.01)
        else:
            return ""
        process, code = dead[0], codes[dead[0]]
        assert code is not None
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        index = None if process.pid is None else self._now.of(process.pid)
        what = "while it read nothing" if index is None else f"while it read {self._reader.manifest.describe(index)}"
        return f" ({how} {what})"


_SECONDS_TO_DIE = 5.0
"""The pool may know of a death a moment before its exit code can be asked for."""


class PendingRow:
    """A row that is being read.

    Args:
        result: waits for it.
        naming: the context in which it is waited for.
    """

    def __init__(self, result: Callable[[], ReadRow | FinishedRow], naming: Callable[[], AbstractContextManager[None]]):
        self._result, self._naming = result, naming

    def result(self) -> ReadRow | FinishedRow:
        """Wait for it.

        Raises:
            SampleError: a sample of the row cannot be used.
            RuntimeError: a reading process died; names the sample that it was at.
        """
        with self._naming():
            return self._result()


def _read(reader: RowReader, decodes: bool, indices: Sequence[int]) -> ReadRow | FinishedRow:
    return reader.read_and_decode(indices) if decodes else reader.read(indices)


_OWN: list[tuple[RowReader, bool, NowReading]] = []
"""In a reading process, what it reads with: a pool has no other way to give its tasks what is not copied to them."""


def _start(reader: RowReader, decodes: bool, trainer: int, now: NowReading) -> None:
    torch.set_num_threads(1)
    now.claim()
    reader.at = now.at
    _OWN.append((reader, decodes, now))
    _leave_signals_to(trainer)


_Sent = tuple[bytes, Tensor | None]
"""A row on its way: pickled without its tiles, and the tiles, in shared memory. Every tensor in shared memory keeps a
file descriptor open, so the small ones are not."""


def _read_here(indices: Sequence[int]) -> _Sent:
    ((reader, decodes, now),) = _OWN
    try:
        result = _read(reader, decodes, indices)
    finally:
        now.at(None)
    if isinstance(result, ReadRow) or result.row is None:
        return pickle.dumps(result), None
    tiles = result.row.tiles
    row = replace(result.row, tiles=tiles.new_empty(0))
    return pickle.dumps(FinishedRow(row=row, report=result.report)), tiles


def _received(sent: _Sent) -> ReadRow | FinishedRow:
    result, tiles = pickle.loads(sent[0]), sent[1]
    if tiles is None:
        return result
    # A copy, which gives the shared memory and its file descriptor back.
    return FinishedRow(row=replace(result.row, tiles=tiles.clone()), report=result.report)


def _pinned(future: Future[_Sent]) -> FinishedRow:
    finished = _received(future.result())
    assert isinstance(finished, FinishedRow), "rows are pinned only where they are decoded"
    return FinishedRow(row=finished.row and finished.row.pin_memory(), report=finished.report)


def _leave_signals_to(trainer: int) -> None:
    """Schedulers send signals to every process of a job, and the trainer still needs its rows when it gets one.

    Only a SIGTERM from the trainer itself, or its end, ends a reading process.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # A handler would not learn who sent the signal, so it is blocked and waited for.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()


def _end_with(trainer: int) -> None:
    while os.getppid() == trainer:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == trainer:
            break
    os._exit(0)
