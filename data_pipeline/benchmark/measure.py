"""Timing of several jobs side by side, and what may be said of the times."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def interleaved(
    jobs: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    progress: Callable[[], object],
) -> dict[str, list[float]]:
    """Seconds of every job, one a round.

    Each round runs every job once, every other round backwards, so that what slows the machine down for a while slows
    all of them. One round before the first is not counted.

    Args:
        jobs: what to run, by name.
        rounds: rounds that count.
        device: where the jobs run; its queue is empty when a time is taken.
        progress: called after each job.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for index in range(1 + rounds):
        for name in list(jobs) if index % 2 else reversed(list(jobs)):
            _synchronize(device)
            start = time.perf_counter()
            jobs[name]()
            _synchronize(device)
            if index > 0:
                times[name].append(time.perf_counter() - start)
            progress()
    return times


def ratios(slower: list[float], faster: list[float]) -> tuple[float, float, float]:
    """How many times faster the second job is: median, smallest and largest of the ratios within each round."""
    pairs = [a / b for a, b in zip(slower, faster, strict=True)]
    return median(pairs), min(pairs), max(pairs)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
