"""Output folders that are whole or absent."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(out: Path, num_bytes: int) -> Iterator[Path]:
    """A folder beside ``out`` to write into; renamed to ``out`` when the block ends without an error.

    After an error it is removed. A killed program may leave it, under a name that looks like no result; the next call
    with the same ``out`` removes it.

    Args:
        out: folder to create.
        num_bytes: what will be written at least; the disk must have room for it before anything is.

    Raises:
        ValueError: ``out`` exists.
        OSError: there is no space.
    """
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} exists; name a new folder")
    unfinished = out.with_name(f".{out.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    try:
        free = shutil.disk_usage(unfinished).free
        if num_bytes > free:
            need = f"{num_bytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {need}", str(out))
        yield unfinished
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
