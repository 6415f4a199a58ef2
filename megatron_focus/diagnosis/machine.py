"""Cores, memory, limits, disks and Slurm of this machine. Standard library alone."""

import errno
import os
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from megatron_focus.diagnosis.compiler import find_compiler
from megatron_focus.diagnosis.finding import Finding

GIB = 2**30
SLURM_COMMANDS = ("sbatch", "srun", "squeue", "scontrol")
_MIN_SHARED_MEMORY = GIB  # containers have 64 MiB unless told otherwise
_MIN_OPEN_FILES = 4096  # sockets of NCCL and open shards

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where a disk, or the user's share of it, is full."""


class NoRoomError(ValueError):
    """A folder could be used if its disk were not full."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the machine offers; sizes in bytes."""

    cores: int
    """CPU cores that this process may use."""
    memory: int
    open_files: int
    """Soft limit."""
    shared_memory: int
    """Size of /dev/shm; 0 where there is none."""
    compiler: str | None
    """C compiler that Triton takes."""
    slurm: str | None
    """Version, where its commands are there."""

    def findings(self) -> list[Finding]:
        """Limits that are known to end in trouble."""
        found = []
        if self.shared_memory < _MIN_SHARED_MEMORY:
            found.append(
                Finding(
                    about="/dev/shm",
                    message=f"shared memory of {size(self.shared_memory)}: NCCL and readers need more",
                    fix="docker run --ipc=host ... (or --shm-size=16g)",
                    is_problem=False,
                )
            )
        if self.open_files < _MIN_OPEN_FILES:
            found.append(
                Finding(
                    about="open files",
                    message=f"at most {self.open_files} open files: many nodes and shards need more",
                    fix="ulimit -n 65536",
                    is_problem=False,
                )
            )
        return found


def inspect_machine() -> Machine:
    """Ask the operating system."""
    shm = Path("/dev/shm")
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        shared_memory=shutil.disk_usage(shm).total if shm.is_dir() else 0,
        compiler=find_compiler(),
        slurm=_slurm_version(),
    )


def size(nbytes: float) -> str:
    """For people: ``1.5 GiB``, or ``20 MiB`` below one GiB."""
    return f"{nbytes / GIB:,.1f} GiB" if nbytes >= GIB else f"{nbytes / 2**20:,.0f} MiB"


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Free space where ``path`` lies or will lie."""
    return shutil.disk_usage(existing_part(path)).free


def existing_part(path: str | os.PathLike[str]) -> Path:
    """``path``, or its nearest parent that exists."""
    wanted = Path(path).absolute()
    return next(part for part in (wanted, *wanted.parents) if part.exists())


def _slurm_version() -> str | None:
    if any(shutil.which(command) is None for command in SLURM_COMMANDS):
        return None
    run = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, timeout=30)
    return run.stdout.strip() or None
