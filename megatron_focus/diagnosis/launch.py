"""Which rank this process is, on which node, and which nodes there should be."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A process of the job, as its launcher says."""

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int
    node: str
    """Slurm's name of the node, or the host's."""
    allocated: tuple[str, ...]
    """Nodes of the Slurm job; empty without Slurm."""
    has_agent_store: bool = False
    """torchrun's agent listens at the port already."""

    @property
    def speaks_for_node(self) -> bool:
        """One process looks at what all processes of a node share."""
        return self.local_rank == 0


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read what torchrun's variables say, or the trainer's, and without them Slurm's.

    Raises:
        ValueError: one is missing or no number; names it. One process that takes itself for the whole job would find
            everything in order.
    """
    nodes = expand_hostlist(environment.get("SLURM_JOB_NODELIST", ""))
    if "RANK" not in environment and "SLURM_PROCID" in environment and nodes:
        environment = {**environment, **_as_torch_calls_it(environment, nodes)}
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not (value := environment.get(name, "")).isdecimal():
            raise ValueError(f"{name}={value!r} is not a number: start one process per GPU with srun or torchrun")
        numbers[name.lower()] = int(value)
    if not environment.get("MASTER_ADDR"):
        raise ValueError("MASTER_ADDR is not set: it names the host of rank 0")
    if numbers["rank"] >= numbers["world_size"]:
        raise ValueError(f"RANK={numbers['rank']} is not below WORLD_SIZE={numbers['world_size']}")
    return Launch(
        **numbers,
        master_addr=environment["MASTER_ADDR"],
        node=environment.get("SLURMD_NODENAME") or socket.gethostname(),
        allocated=tuple(nodes),
        has_agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _as_torch_calls_it(environment: Mapping[str, str], nodes: list[str]) -> dict[str, str]:
    """What ``slurm/train.sh`` and ``rank.sh`` set, for a task that srun started without them."""
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment.get("SLURM_NTASKS", ""),
        "LOCAL_RANK": environment.get("SLURM_LOCALID", ""),
        "MASTER_ADDR": nodes[0],
        "MASTER_PORT": str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 10000),
    }


def expand_hostlist(hostlist: str) -> list[str]:
    """``node[1-2,07],login`` -> node1, node2, node07, login, as ``scontrol show hostnames`` does.

    Containers often lack scontrol.

    Raises:
        ValueError: the list is not of this form.
    """
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", hostlist):
        pieces = re.split(r"\[([^\]]*)\]", part)
        expanded = [pieces[0]]
        for numbers, text in zip(pieces[1::2], pieces[2::2], strict=True):
            expanded = [name + number + text for name in expanded for number in _numbers(numbers, hostlist)]
        names += expanded
    return names


def _numbers(ranges: str, hostlist: str) -> list[str]:
    numbers: list[str] = []
    for entry in ranges.split(","):
        first, _, last = entry.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise ValueError(f"{hostlist!r} is not a list of hosts: {entry!r}")
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return numbers
