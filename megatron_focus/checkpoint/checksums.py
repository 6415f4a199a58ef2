"""SHA-256 sums of a checkpoint's files, in a file that ``sha256sum -c SHA256SUMS`` reads."""

import hashlib
import socket
from collections.abc import Collection, Iterable
from pathlib import Path

import torch

from megatron_focus.checkpoint.agreement import on_rank_0

SUMS_FILE = "SHA256SUMS"
ALWAYS = (".metadata", "metadata.json")
"""Files without which no checkpoint can be loaded."""
_DATA = ("common.pt", "*.distcp")  # the first by megatron-core 0.16 alone


def write_sums(folder: Path, names: Iterable[str], file: str) -> None:
    """Write ``folder/file`` with one line ``SUM  NAME`` for each file of ``names``."""
    lines = [f"{_sum(folder / name)}  {name}\n" for name in sorted(names)]
    (folder / file).write_text("".join(lines))


def read_sums(path: Path) -> dict[str, str]:
    """Name -> sum.

    Raises:
        ValueError: a line is not of this form; names file and line.
    """
    sums = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        digest, separator, name = line.partition("  ")
        if len(digest) != 64 or not separator or not name or "/" in name:
            raise ValueError(f"{path}, line {number}: {line[:80]!r} is not a SHA-256 sum and a file name")
        sums[name] = digest
    return sums


def damaged_files(folder: Path) -> list[str]:
    """What is wrong with a checkpoint's files, one entry a file; each rank reads its share (collective).

    A checkpoint without sums, such as an imported one, has nothing to be compared with.

    Raises:
        OSError: a rank cannot read its share, or reads something else than rank 0: a fault of its node or of the
            storage, and not of the checkpoint.
    """
    sums, problem = on_rank_0(lambda: _sums_of(folder))
    if problem is not None:
        return [problem]
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    gathered: list[tuple[str, list[str], list[str]]] = [("", [], []) for _ in range(ranks)]
    torch.distributed.all_gather_object(
        gathered, (socket.gethostname(), *_compare(folder, sums, sorted(sums)[rank::ranks]))
    )
    unreadable = [f"{host}: {reason}" for host, _, reasons in gathered for reason in reasons]
    if unreadable:
        raise OSError(f"{folder} cannot be read: {'; '.join(unreadable[:5])}")
    accused = {name: host for host, names, _ in gathered for name in names}
    # Read once more, on another node: nothing is set aside because one machine sees it differently.
    guilty, unreadable = on_rank_0(lambda: _compare(folder, sums, sorted(accused)))
    if unreadable or (innocent := sorted(accused.keys() - set(guilty))):
        seen = unreadable[0] if unreadable else f"{innocent[0]} is damaged as {accused[innocent[0]]} reads it"
        raise OSError(f"{folder}: {seen}, and not on all nodes")
    return [f"{name} is not what was written" for name in guilty]


class CheckedFiles:
    """The files of a checkpoint, each compared with its sum before it is used, by a single process.

    A checkpoint without sums, such as an imported one, has nothing to be compared with.

    Raises:
        ValueError: the sums cannot be used; names the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._good = folder, set[str]()
        self._sums, problem = _sums_of(folder)
        if problem is not None:
            raise ValueError(f"{folder} is damaged: {problem}")

    def names(self) -> list[str]:
        """Every file that has a sum."""
        return sorted(self._sums)

    def check(self, names: Iterable[str]) -> None:
        """Read those of ``names`` that were not read before, and compare them.

        Raises:
            ValueError: a file is missing, not what was written or without a sum; names it.
            OSError: a file cannot be read.
        """
        for name in sorted(set(names) - self._good) if self._sums else ():
            if name not in self._sums:
                raise ValueError(f"{self._folder} is damaged: {SUMS_FILE} does not list {name}")
            changed, unreadable = _compare(self._folder, self._sums, [name])
            if unreadable:
                raise OSError(f"{self._folder} cannot be read: {unreadable[0]}")
            if changed:
                raise ValueError(f"{self._folder} is damaged: {name} is not what was written")
            self._good.add(name)


def _sums_of(folder: Path) -> tuple[dict[str, str], str | None]:
    """The sums, and what is wrong with them."""
    if not (folder / SUMS_FILE).exists():
        return {}, None
    try:
        sums = read_sums(folder / SUMS_FILE)
    except ValueError as error:
        return {}, str(error)
    there = (path.name for pattern in _DATA for path in sorted(folder.glob(pattern)))
    missing = [name for name in (*ALWAYS, *there) if name not in sums]
    return sums, f"{SUMS_FILE} does not list {', '.join(missing)}" if missing else None


def _compare(folder: Path, sums: dict[str, str], names: Collection[str]) -> tuple[list[str], list[str]]:
    """Of ``names``, those that are missing or changed, and why others cannot be read."""
    changed, unreadable = [], []
    for name in names:
        try:
            if _sum(folder / name) != sums[name]:
                changed.append(name)
        except FileNotFoundError:
            changed.append(name)
        except OSError as error:
            unreadable.append(f"{name} ({error.strerror})")
    return changed, unreadable


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
