"""Signals of a scheduler: a request to save and leave at the next step boundary."""

import signal
from types import FrameType, TracebackType

import torch

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""What Slurm sends before a time limit (``--signal``) and on preemption."""


class StopRequest:
    """Remembers signals while it is entered.

    A signal may reach only some ranks, or each between other steps, so all of them agree on the step after which they
    leave.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank has been asked to stop (collective over the world)."""
        asked = torch.tensor([int(self.received is not None)], dtype=torch.int32, device=device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
