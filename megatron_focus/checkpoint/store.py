"""Folders of checkpoints that are either complete or not there.

A checkpoint is written into ``iter_0000500.partial`` and renamed to ``iter_0000500`` when every rank has finished, so a
kill at any moment leaves the last complete one usable. Rank 0 alone touches names.
"""

import re
import shutil
from pathlib import Path

import torch

_COMPLETE = re.compile(r"iter_(\d{7,})")
_PARTIAL = ".partial"


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

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

    def begin(self, iteration: int) -> Path:
        """An empty folder to write into, on every rank. Left-overs of killed writers are removed.

        Raises:
            ValueError: the checkpoint exists already.
        """
        if self.path(iteration).exists():
            raise ValueError(f"{self.path(iteration)} exists already; nothing is written over a checkpoint")
        torch.distributed.barrier()  # every rank has looked before the folder can appear
        partial = _partial(self.path(iteration))
        if torch.distributed.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(f"iter_*{_PARTIAL}"):
                shutil.rmtree(stale)
            partial.mkdir()
        torch.distributed.barrier()
        return partial

    def commit(self, iteration: int, keep_last: int) -> Path:
        """Make the checkpoint visible, then remove those beyond the newest ``keep_last`` (0 keeps all)."""
        final = self.path(iteration)
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            _partial(final).rename(final)
            for old in self.iterations()[:-keep_last] if keep_last else []:
                # Renamed first: a kill in the middle must not leave half of something that looks complete.
                self.path(old).rename(_partial(self.path(old)))
                shutil.rmtree(_partial(self.path(old)))
        torch.distributed.barrier()
        return final


def _partial(path: Path) -> Path:
    return path.with_name(path.name + _PARTIAL)
