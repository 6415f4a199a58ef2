"""Files that are whole or absent, whatever kills the program."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EMLINK, ENOSYS, ENOTSUP, EOPNOTSUPP, EPERM, EXDEV
from pathlib import Path

_NO_LINKS = {EMLINK, ENOSYS, ENOTSUP, EOPNOTSUPP, EPERM, EXDEV}
"""What file systems without hard links answer."""
_LONGEST_WAIT = 10.0
"""Seconds; a rename takes far less."""


@contextmanager
def written_aside(target: Path, folder: Path, *, first_wins: bool = False) -> Iterator[Path]:
    """A path in ``folder`` to write ``target``'s content to; renamed to ``target`` when the block ends without error.

    Both are on one file system. The path is of this process alone, so several may write the same target, and the last
    one wins; with ``first_wins`` the first one, whose content stays. It begins with the target's name and a dot.

    Raises:
        OSError: it cannot be written, or a process that was killed left its lock.
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
            _place_first(aside, target)
            aside.unlink(missing_ok=True)
        else:
            os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _place_first(aside: Path, target: Path) -> None:
    """Give the file the target's name unless that is taken: by a link, or under a lock where there are no links."""
    try:
        return os.link(aside, target)
    except FileExistsError:
        return None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    lock, end = aside.with_name(f"{target.name}.lock"), time.monotonic() + _LONGEST_WAIT
    while not target.exists():
        try:
            lock.mkdir()
        except FileExistsError:
            if time.monotonic() > end:
                raise OSError(f"{lock}: left by a process that was killed; remove it") from None
            time.sleep(0.02)
            continue
        try:
            if not target.exists():
                os.replace(aside, target)
        finally:
            lock.rmdir()
