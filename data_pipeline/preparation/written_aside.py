"""Files that are whole or absent, whatever kills the program."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(target: Path, folder: Path) -> Iterator[Path]:
    """A path in ``folder`` to write ``target``'s content to; renamed to ``target`` when the block ends without error.

    Both are on one file system. The path is of this process alone, so several may write the same target, and the last
    one wins. It begins with the target's name and a dot.
    """
    aside = folder / f"{target.name}.{socket.gethostname()}-{os.getpid()}"
    try:
        yield aside
        descriptor = os.open(aside, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # or a node that loses power might keep the name without the content
        finally:
            os.close(descriptor)
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
