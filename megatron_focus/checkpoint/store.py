"""Folders of checkpoints that are either complete or not there.

A checkpoint is written into ``iter_0000500.partial-LIFE`` and renamed to ``iter_0000500`` when every rank has finished,
so a kill at any moment leaves the last complete one usable. Rank 0 alone touches names.

A life is one start of a job. A node that lost its connection may go on running while the job is started again
elsewhere; the file ``owner`` names the life that may write, and every writer looks before it renames.
"""

import contextlib
import os
import re
import shutil
import uuid
from pathlib import Path

from megatron_focus.checkpoint.agreement import SaveError, SupersededError, on_rank_0

_COMPLETE = re.compile(r"iter_(\d{7,})")
_LIFE = re.compile(r"[A-Za-z0-9._-]{1,100}")
_PARTIAL = ".partial-"
_OWNER = "owner"
_ROOM = 4 * 2**20  # bytes; more than all plain values of a checkpoint


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they are.
        life: name of this start of the job, the same on all ranks; None for a writer that competes with nobody.

    Raises:
        ValueError: ``life`` cannot be part of a file's name.
    """

    def __init__(self, folder: str | Path, life: str | None = None) -> None:
        if life is not None and not _LIFE.fullmatch(life):
            raise ValueError(f"life {life!r}: use letters, digits, '.', '_' and '-', at most 100")
        self.folder, self.life = Path(folder), life

    def path(self, iteration: int) -> Path:
        """Folder of a complete checkpoint."""
        return self.folder / f"iter_{iteration:07d}"

    def iterations(self) -> list[int]:
        """Complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (_COMPLETE.fullmatch(p.name) for p in self.folder.iterdir() if p.is_dir())
        return sorted(int(match[1]) for match in names if match)

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        iterations = self.iterations()
        return self.path(iterations[-1]) if iterations else None

    def take_over(self) -> None:
        """Become the folder's owner: lives before this one can complete no more checkpoints (collective).

        What they left unfinished is removed first: it may be what fills the disk.

        Raises:
            SaveError: the folder cannot be written. Nothing that is trained then could be saved.
        """
        on_rank_0(self._write_owner)

    def begin(self, iteration: int) -> Path:
        """An empty folder to write into, on every rank. Left-overs of killed writers are removed (collective).

        Raises:
            ValueError: the checkpoint exists already.
            SaveError: the folder cannot be written.
            SupersededError: it belongs to a later life.
        """
        if on_rank_0(lambda: self.path(iteration).exists()):
            raise ValueError(f"{self.path(iteration)} exists already; nothing is written over a checkpoint")
        return on_rank_0(lambda: self._make_partial(iteration))

    def commit(self, partial: Path, iteration: int, keep_last: int) -> Path:
        """Make the checkpoint visible, then remove those beyond the newest ``keep_last`` (0 keeps all). Rank 0 only.

        Raises:
            SupersededError: the folder belongs to a later life.
        """
        self._check_owner()
        # On disk before older ones go: after a power failure the newest must not be the one that is empty.
        for file in partial.iterdir():
            _flush(file)
        _flush(partial)
        self._check_owner()  # that took a while
        final = partial.rename(self.path(iteration))
        _flush(self.folder)
        for old in self.iterations()[:-keep_last] if keep_last else []:
            # Renamed first: a kill in the middle must not leave half of something that looks complete. What cannot be
            # removed now is removed before the next checkpoint.
            with contextlib.suppress(OSError):
                shutil.rmtree(self.path(old).rename(self._partial(old)), ignore_errors=True)
        return final

    def set_aside(self, iteration: int) -> Path:
        """Rename a checkpoint that cannot be used, so that it is neither loaded nor counted again. Rank 0 only."""
        damaged = self.path(iteration).with_name(f"{self.path(iteration).name}.damaged-{uuid.uuid4().hex[:8]}")
        return self.path(iteration).rename(damaged)

    def _partial(self, iteration: int) -> Path:
        path = self.path(iteration)
        return path.with_name(f"{path.name}{_PARTIAL}{self.life or uuid.uuid4().hex[:8]}")

    def _write_owner(self) -> None:
        assert self.life is not None
        aside = self.folder / f"{_OWNER}.{self.life}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            aside.write_text(self.life)
            aside.replace(self.folder / _OWNER)
        except OSError as error:
            raise SaveError(f"{self.folder} cannot be written: {error.strerror}") from error

    def _check_owner(self) -> None:
        owner = self.folder / _OWNER
        if self.life is not None and (now := owner.read_text()) != self.life:
            raise SupersededError(
                f"{self.folder} belongs to {now} now: this run ({self.life}) was started again elsewhere"
            )

    def _remove_unfinished(self) -> None:
        for stale in self.folder.glob(f"iter_*{_PARTIAL}*"):
            shutil.rmtree(stale, ignore_errors=True)  # an earlier life may still be writing into it

    def _make_partial(self, iteration: int) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_owner()
        self._remove_unfinished()
        # A full disk is noticed here, by all ranks, and not where only the one that writes would learn of it.
        room = self.folder / f"room.{self.life or uuid.uuid4().hex[:8]}"
        try:
            with room.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _ROOM)
        finally:
            room.unlink(missing_ok=True)
        partial = self._partial(iteration)
        partial.mkdir(exist_ok=True)
        return partial


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
