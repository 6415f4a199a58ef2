"""SHA-256 sums of a checkpoint's files, in a file that ``sha256sum -c SHA256SUMS`` reads."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch

SUMS_FILE = "SHA256SUMS"


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
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    gathered: list[list[str]] = [[] for _ in range(ranks)]
    torch.distributed.all_gather_object(gathered, _damaged(folder, rank, ranks))
    return sorted({problem for problems in gathered for problem in problems})


def _damaged(folder: Path, rank: int, ranks: int) -> list[str]:
    if not (folder / SUMS_FILE).exists():
        return []
    try:
        sums = read_sums(folder / SUMS_FILE)
    except ValueError as error:
        return [str(error)]
    problems = []
    for name in sorted(sums)[rank::ranks]:
        try:
            if _sum(folder / name) != sums[name]:
                problems.append(f"{name} has changed since it was written")
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
    return problems


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
