"""Processes that read rows ahead, in order."""

import os
import pickle
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch
import torch.multiprocessing  # teaches the pool to hand tensors over in shared memory
from torch import Tensor

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
        if num_workers > 0:
            context = get_context("fork")
            self._pool = ProcessPoolExecutor(num_workers, context, _start, (reader, decodes, os.getpid()))
            # The first task starts all processes: now, before the trainer has more threads that a fork would lose.
            self._pool.submit(os.getpid).result()
        self._pinning = ThreadPoolExecutor(1, "pin") if pin_memory else None

    def submit(self, indices: Sequence[int]) -> "PendingRow":
        """Begin to read a row."""
        if self._pool is None:
            return PendingRow(lambda: _read(self._reader, self._decodes, indices))
        future = self._pool.submit(_read_here, indices)
        if self._pinning is None:
            return PendingRow(lambda: _received(future.result()))
        return PendingRow(self._pinning.submit(_pinned, future).result)

    def close(self) -> None:
        """End the processes; what they have begun is thrown away."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._pinning is not None:
            self._pinning.shutdown(wait=True, cancel_futures=True)


class PendingRow:
    """A row that is being read."""

    def __init__(self, result: Any):
        self._result = result

    def result(self) -> ReadRow | FinishedRow:
        """Wait for it.

        Raises:
            SampleError: a sample of the row cannot be used.
            RuntimeError: a reading process died.
        """
        try:
            return self._result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a reading process died ({error.__cause__ or error}); if the system killed it for want of memory, use "
                "fewer data.num_workers"
            ) from error


def _read(reader: RowReader, decodes: bool, indices: Sequence[int]) -> ReadRow | FinishedRow:
    return reader.read_and_decode(indices) if decodes else reader.read(indices)


_OWN: list[tuple[RowReader, bool]] = []
"""In a reading process, what it reads with: a pool has no other way to give its tasks what is not copied to them."""


def _start(reader: RowReader, decodes: bool, trainer: int) -> None:
    torch.set_num_threads(1)
    _OWN.append((reader, decodes))
    _leave_signals_to(trainer)


_Sent = tuple[bytes, Tensor | None]
"""A row on its way: pickled without its tiles, and the tiles, in shared memory. Every tensor in shared memory keeps a
file descriptor open, so the small ones are not."""


def _read_here(indices: Sequence[int]) -> _Sent:
    ((reader, decodes),) = _OWN
    result = _read(reader, decodes, indices)
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
