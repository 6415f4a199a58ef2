"""Files that are whole or absent, whatever kills the program."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_aside(target: Path, folder: Path, *, first_wins: bool = False) -> Iterator[Path]:
    """A path in ``folder`` to write ``target``'s content to; renamed to ``target`` when the block ends without error.

    Both are on one file system. The path is of this process alone, so several may write the same target, and the last
    one wins; with ``first_wins`` (which needs hard links) the first one, whose content stays. It begins with the
    target's name and a dot.
    """
    aside = folder / f"{target.name}.{socket.gethostname()}-{os.getpid()}"
    try:
        yield aside
        descriptor = os.open(aside, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # or a node that loses power might keep the name without the content
        finally:
            os.close(descriptor)
        if first_wins:
            with suppress(FileExistsError):
                os.link(aside, target)
            aside.unlink()
        else:
            os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
