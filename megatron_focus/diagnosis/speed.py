"""Measured speeds: matrix products of each GPU, and all-reduces of the job, of each node and of pairs of nodes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
import torch.distributed as dist

from megatron_focus.diagnosis.pairing import shifts

_WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How much is computed and sent."""

    matrix: int
    """Side of the square matrices that are multiplied."""
    dtype: torch.dtype
    nbytes: int
    """Of the all-reduced tensor."""
    repeats: int
    """The median of so many counts."""

    @classmethod
    def for_device(cls, device: torch.device) -> "Workload":
        """Enough to reach a GPU's and a network's full speed; on a CPU just enough to see that they work."""
        if device.type == "cuda":
            return cls(matrix=8192, dtype=torch.bfloat16, nbytes=256 * 2**20, repeats=10)
        return cls(matrix=512, dtype=torch.float32, nbytes=2**20, repeats=3)


@dataclass
class Speeds:
    """Of one rank, as plain values; bandwidths in GB/s, seen from this rank."""

    tflops: float = 0.0
    whole: float | None = None
    """All ranks; None where there is only one."""
    within: float | None = None
    """The ranks of this node; None where there is only one."""
    pairs: dict[str, float] = field(default_factory=dict)
    """Partner node -> the ranks of both nodes."""


def measure(nodes: Sequence[str], device: torch.device, work: Workload, stage: Callable[[str], None]) -> Speeds:
    """Measure everything (collective over the default process group).

    Args:
        nodes: node of each rank, by rank.
        device: this rank's.
        work: how much to compute and send.
        stage: called with the name of what comes next.
    """
    rank = dist.get_rank()
    own = nodes[rank]
    speeds = Speeds()
    stage("matrix products")
    speeds.tflops = _tflops(device, work)
    stage("all-reduce of the whole job")
    _barrier(device)
    if len(nodes) > 1:
        speeds.whole = _bandwidth(None, len(nodes), device, work)
    names = list(dict.fromkeys(nodes))
    stage("all-reduce within each node")
    if len(names) > 1:
        speeds.within = _group_bandwidth(_ranks(nodes, own), device, work)
    else:
        speeds.within = speeds.whole
    for number, pairs in enumerate(shifts(names), 1):
        stage(f"all-reduce of pairs of nodes, round {number}")
        _barrier(device)  # one round does not disturb the next
        for pair in pairs:
            if own in pair:
                partner = pair[1] if own == pair[0] else pair[0]
                bandwidth = _group_bandwidth(_ranks(nodes, *pair), device, work)
                assert bandwidth is not None
                speeds.pairs[partner] = bandwidth
    stage("the end of the speed tests")
    _barrier(device)
    return speeds


def _barrier(device: torch.device) -> None:
    """Wait for all, with this rank's own GPU where the ranks have some."""
    dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)


def _ranks(nodes: Sequence[str], *wanted: str) -> list[int]:
    return [rank for rank, node in enumerate(nodes) if node in wanted]


def _tflops(device: torch.device, work: Workload) -> float:
    left = torch.randn(work.matrix, work.matrix, device=device).to(work.dtype)
    right = torch.randn(work.matrix, work.matrix, device=device).to(work.dtype)
    seconds = _seconds(lambda: torch.mm(left, right), device, work)
    return 2 * work.matrix**3 / seconds / 1e12


def _group_bandwidth(ranks: list[int], device: torch.device, work: Workload) -> float | None:
    """Bandwidth of a group that only its own ranks make, so that 1,000 ranks do not wait for each other's groups."""
    if len(ranks) == 1:
        return None
    group = dist.new_group(ranks, use_local_synchronization=True)
    bandwidth = _bandwidth(group, len(ranks), device, work)
    dist.destroy_process_group(group)
    return bandwidth


def _bandwidth(group: dist.ProcessGroup | None, size: int, device: torch.device, work: Workload) -> float:
    """Bus bandwidth in GB/s as nccl-tests define it, comparable for any n ranks: bytes x 2 (n - 1) / n / seconds."""
    tensor = torch.zeros(work.nbytes // 4, device=device)
    seconds = _seconds(lambda: dist.all_reduce(tensor, group=group), device, work)
    return work.nbytes * 2 * (size - 1) / size / seconds / 1e9


def _seconds(run: Callable[[], object], device: torch.device, work: Workload) -> float:
    times = []
    for number in range(_WARM_UP + work.repeats):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= _WARM_UP:
            times.append(time.perf_counter() - started)
    return median(times)
