"""Where a prepared data set lies: a folder, or a URL that fsspec understands (http, https, s3, gs, memory ...).

Far shards can be kept in a local cache, each fetched once however many processes of the machine ask for it.
"""

import hashlib
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from filelock import FileLock
from fsspec.core import url_to_fs

_ATTEMPTS = 4
"""How often a far read is tried; the pauses between are 1, 2 and 4 seconds."""


class Storage:
    """Reads files of one folder, whole or in parts. Safe to use after a fork.

    Args:
        folder: path or URL of the data set.
        cache_dir: local folder for whole shards from a URL; None reads ranges of bytes from there each time.
        cache_bytes: size that the cache is kept below, the shards that were not used for longest go first; None: no
            limit.
    """

    MAX_OPEN = 64
    """Local files kept open at a time."""

    def __init__(self, folder: str, cache_dir: str | None = None, cache_bytes: int | None = None):
        self.folder = folder.rstrip("/")
        self.is_local = "://" not in folder
        self._cache: Path | None = None
        if cache_dir is not None and not self.is_local:
            # Data sets of the same name at other places have a folder of their own.
            self._cache = Path(cache_dir) / hashlib.sha256(self.folder.encode()).hexdigest()[:16]
        self._cache_bytes = cache_bytes
        self._open: OrderedDict[str, int] = OrderedDict()
        self._far: tuple[int, Any, str] | None = None

    def place(self, name: str) -> str:
        """Path or URL of a file, for messages."""
        return f"{self.folder}/{name}"

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
        """
        if self.is_local:
            try:
                return Path(self.folder, name).read_bytes()
            except MemoryError as error:
                raise OSError("it does not fit into memory") from error
        filesystem, root = self._filesystem()
        return _again(lambda: filesystem.cat_file(f"{root}/{name}"))

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        if self.is_local:
            return os.stat(os.path.join(self.folder, name)).st_size
        filesystem, root = self._filesystem()
        return int(_again(lambda: filesystem.size(f"{root}/{name}")))

    def read_range(self, name: str, offset: int, size: int, whole: int) -> bytes:
        """``size`` bytes from ``offset``; fewer where the file ends earlier.

        Args:
            name: the file.
            offset: where the range begins.
            size: its length.
            whole: bytes that the file should have; a file in the cache of another size is fetched again.
        """
        if self.is_local:
            return _pread(self._descriptor(os.path.join(self.folder, name)), offset, size)
        if self._cache is not None:
            path = self._cached(self._cache / name, name, whole)
            return _pread(self._descriptor(str(path)), offset, size)
        filesystem, root = self._filesystem()
        data: bytes = _again(lambda: filesystem.cat_file(f"{root}/{name}", start=offset, end=offset + size))
        if len(data) > size:
            raise OSError(f"{self.place(name)}: the server ignores byte ranges; set data.cache_dir, which needs none")
        return data

    def close(self) -> None:
        """Close the local files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _filesystem(self) -> tuple[Any, str]:
        """fsspec's file system and the folder in it. Its threads do not survive a fork, so each process has its own."""
        if self._far is None or self._far[0] != os.getpid():
            filesystem, root = url_to_fs(self.folder, skip_instance_cache=True)
            self._far = (os.getpid(), filesystem, root.rstrip("/"))
        return self._far[1:]

    def _descriptor(self, path: str) -> int:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            if self._cache is not None:
                self._close_dropped()
            if len(self._open) >= self.MAX_OPEN:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY)
        return self._open[path]

    def _close_dropped(self) -> None:
        """Close files that the cache has dropped: while open, they still take space on the disk."""
        for path, descriptor in list(self._open.items()):
            if os.fstat(descriptor).st_nlink == 0:
                os.close(self._open.pop(path))

    def _cached(self, path: Path, name: str, whole: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        while str(path) not in self._open:  # open files stay readable, even when the cache has dropped them
            with FileLock(f"{path}.lock"):  # the other processes of this machine wait for the one that fetches
                if not path.is_file() or path.stat().st_size != whole:
                    self._fetch(name, path)
            try:
                os.utime(path)  # the order in which files leave the cache
                self._descriptor(str(path))
            except FileNotFoundError:
                continue  # another process has just dropped it
        return path

    def _fetch(self, name: str, path: Path) -> None:
        filesystem, root = self._filesystem()
        aside = path.with_name(path.name + ".partial")
        _again(lambda: filesystem.get_file(f"{root}/{name}", str(aside)))
        aside.replace(path)
        self._make_room(path)

    def _make_room(self, newest: Path) -> None:
        if self._cache_bytes is None:
            return
        assert self._cache is not None
        with FileLock(self._cache / "room.lock"):  # one process at a time
            found = [(path, path.stat()) for path in self._cache.rglob("*.tar")]
            total = sum(stat.st_size for _, stat in found)
            for path, stat in sorted(found, key=lambda entry: entry[1].st_mtime):
                if total <= self._cache_bytes or path == newest:
                    break
                path.unlink()
                total -= stat.st_size


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    parts, begin, missing = [], offset, size
    while missing > 0:  # one call may return less than asked for
        part = os.pread(descriptor, missing, begin)
        if not part:
            break
        parts.append(part)
        begin, missing = begin + len(part), missing - len(part)
    return b"".join(parts)


def _again(call: Any) -> Any:
    """Far reads fail now and then; what fails every time is raised, as an ``OSError``."""
    for attempt in range(_ATTEMPTS):
        try:
            return call()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # each protocol's library has errors of its own
            if attempt == _ATTEMPTS - 1:
                # Only its text: some cannot be handed from a reading process to the trainer.
                raise OSError(f"{type(error).__name__}: {error}") from None
            time.sleep(2**attempt)
    raise AssertionError("the last attempt returns or raises")
