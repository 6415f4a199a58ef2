"""Ends a preflight that hangs in a collective, and says who stands where."""

import os
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence

from torch.distributed import PrefixStore, TCPStore

from megatron_focus.diagnosis.launch import Launch
from megatron_focus.diagnosis.verdict import ranges

NOT_THERE = "has not begun"
_GRACE_S = 5.0  # the launcher may end all ranks with the first: rank 0 has to have spoken by then


class Watchdog:
    """Every stage has to end in time, or the process ends with exit code 1.

    Args:
        launch: this process.
        nodes: node of each rank, by rank.
        store: the meeting's; a connection of its own is made, because the main thread may wait in a call of it.
        timeout_s: seconds for each stage.
    """

    def __init__(self, launch: Launch, nodes: Sequence[str], store: TCPStore, timeout_s: float) -> None:
        self._launch, self._nodes, self._timeout_s = launch, nodes, timeout_s
        self._store = PrefixStore("stage", store.clone())  # type: ignore[attr-defined]  # not in its stubs
        self._timer: threading.Timer | None = None

    def stage(self, name: str) -> None:
        """The next stage begins, and the last one has ended."""
        self.done()
        self._store.set(str(self._launch.rank), name)
        grace = _GRACE_S if self._launch.rank else 0.0
        self._timer = threading.Timer(self._timeout_s + grace, self._expired)
        self._timer.daemon = True
        self._timer.start()

    def done(self) -> None:
        """No deadline any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _expired(self) -> None:
        if self._launch.rank == 0:
            keys = [str(rank) for rank in range(self._launch.world_size)]
            stages = {int(k): self._store.get(k).decode() if self._store.check([k]) else NOT_THERE for k in keys}
            message = f"{describe_hang(stages, self._nodes)} (no end in {self._timeout_s:g} s)"
            print(f"preflight: {message}", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread cannot be woken


def describe_hang(stages: Mapping[int, str], nodes: Sequence[str]) -> str:
    """The ranks that stand elsewhere than most are the ones that the others wait for.

    Args:
        stages: rank -> where it stands.
        nodes: node of each rank, by rank.
    """
    usual, count = Counter(stages.values()).most_common(1)[0]
    if count == len(stages):
        return f"all ranks wait in: {usual}"
    apart: dict[tuple[str, str], list[int]] = {}
    for rank, stage in stages.items():
        if stage != usual:
            apart.setdefault((nodes[rank], stage), []).append(rank)
    named = (f"{node}: rank {ranges(ranks)} in: {stage}" for (node, stage), ranks in apart.items())
    return f"{'; '.join(named)}; the others in: {usual}"
