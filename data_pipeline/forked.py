"""Runs work in forked processes, one for each piece of work, so that a process that dies names its piece."""

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, Protocol, TypeVar


class Named(Protocol):
    """A piece of work."""

    @property
    def name(self) -> str:
        """For messages."""


Piece = TypeVar("Piece", bound=Named)
Work = Callable[[Piece, Callable[[Any], None]], None]
"""Does one piece; may send messages to the parent through its second argument."""


def run_forked(
    work: Work[Piece],
    pieces: Iterable[Piece],
    num_workers: int,
    message: Callable[[Any], None],
    finished: Callable[[], None],
) -> None:
    """Do pieces of work in forked processes, which inherit whatever ``work`` refers to.

    A process for each piece rather than a pool: what a process leaks ends with it, and if the parent is killed, each
    ends by itself with its piece. On any exception the processes are ended first.

    Args:
        work: does one piece; raises ``ValueError`` or ``OSError`` where it cannot.
        pieces: what there is to do, in this order.
        num_workers: processes at a time.
        message: called in this process with what the others send.
        finished: called in this process after each piece.

    Raises:
        ValueError, OSError: as ``work`` raised it.
        ChildProcessError: a process died; names its piece.
    """
    waiting = deque(pieces)
    running: dict[Connection, tuple[Piece, ForkProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_workers:
                _start(work, waiting.popleft(), running)
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                try:
                    received = connection.recv()
                except EOFError:
                    _check_exit(*running[connection])
                    connection.close()
                    del running[connection]
                    finished()
                    continue
                if isinstance(received, Exception):
                    raise received
                message(received)
    finally:
        for connection, (_, process) in running.items():
            process.terminate()
            process.join()
            connection.close()


def _start(work: Work[Piece], piece: Piece, running: dict[Connection, tuple[Piece, ForkProcess]]) -> None:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, piece, sender, [receiver, *running]), daemon=True)
    # Ctrl-C reaches all processes of a terminal. The new one never sees it, not even now; the parent ends it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    sender.close()  # the process has the only sending end, so its death ends the stream
    running[receiver] = (piece, process)


def _child(work: Work[Piece], piece: Piece, sender: Connection, inherited: list[Connection]) -> None:
    for receiver in inherited:
        receiver.close()  # so that sending fails, instead of waiting for ever, once the parent is gone
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that it tidies up on its way out
    try:
        work(piece, sender.send)
    except BrokenPipeError:
        return
    except OSError as error:
        sender.send(error)
    except ValueError as error:
        sender.send(ValueError(str(error)))  # not every subclass can be pickled


def _check_exit(piece: Piece, process: ForkProcess) -> None:
    process.join()
    code = process.exitcode
    if not code:
        return
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    memory = " (often because memory ran out)" if code == -signal.SIGKILL else ""
    raise ChildProcessError(f"the process writing {piece.name} {how}{memory}")
