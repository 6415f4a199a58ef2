"""Which sample each reading process is at, seen by the trainer: when one is killed, its sample can be named."""

import os
from multiprocessing.context import ForkContext

_NONE = -1


class NowReading:
    """A place in shared memory for each process: its id, and the index in the manifest of the sample it is at.

    Args:
        context: of the processes, which are forked after this.
        num_workers: their number.
    """

    def __init__(self, context: ForkContext, num_workers: int):
        self._claimed = context.Value("q", 0)
        self._processes = context.RawArray("q", num_workers)
        self._samples = context.RawArray("q", [_NONE] * num_workers)
        self._place = 0

    def claim(self) -> None:
        """Take a place; called once in each reading process."""
        with self._claimed.get_lock():
            self._place = self._claimed.value
            self._claimed.value += 1
        self._processes[self._place] = os.getpid()

    def at(self, index: int | None) -> None:
        """This process is at that sample now, or at none."""
        self._samples[self._place] = _NONE if index is None else index

    def of(self, process: int) -> int | None:
        """The sample that a process was at last; None where it was at none."""
        samples = dict(zip(self._processes, self._samples, strict=True))
        return None if samples.get(process, _NONE) == _NONE else samples[process]
