"""Megatron's pipeline schedules: how many microbatches of which chunk a stage holds, and how long a step lasts.

Source: ``megatron.core.pipeline_parallel.schedules`` (1F1B; interleaved 1F1B, Narayanan et al. 2021, section 2.2).
"""

from collections.abc import Sequence


def peak_in_flight(per_chunk: Sequence[float], stage: int, stages: int, microbatches: int) -> float:
    """Largest sum of what microbatches in flight hold on a stage.

    Args:
        per_chunk: what one microbatch holds between its forward and backward pass, for each chunk of the stage.
        stage: number of the stage, from 0.
        stages: of the pipeline.
        microbatches: of the step.
    """
    chunks = len(per_chunk)
    # A warm-up ends within 4 groups of chunks * stages, and what follows repeats itself.
    order = _forward_order(chunks, stages, min(microbatches, 4 * stages))
    behind = stages - stage - 1
    warmup = behind if chunks == 1 else 2 * behind + (chunks - 1) * stages
    warmup = min(warmup, len(order))
    held, peak = 0.0, 0.0
    backward = [chunks - 1 - chunk for chunk in order]
    for step, chunk in enumerate(order):
        held += per_chunk[chunk]
        peak = max(peak, held)
        if step >= warmup:
            held -= per_chunk[backward[step - warmup]]
    return peak


def _forward_order(chunks: int, stages: int, microbatches: int) -> list[int]:
    """Chunk of each forward pass of a stage: groups of one microbatch a stage, chunk by chunk."""
    if chunks == 1:
        return [0] * microbatches
    order = []
    for first in range(0, microbatches, stages):
        group = min(stages, microbatches - first)
        order += [chunk for chunk in range(chunks) for _ in range(group)]
    return order


def bubble_seconds(stage_seconds: Sequence[float], chunks: int) -> float:
    """Time that the slowest stage waits in a step: fill and drain, shorter by the number of chunks a stage.

    Args:
        stage_seconds: forward and backward of one microbatch on each stage, over all its chunks.
        chunks: a stage.
    """
    return (sum(stage_seconds) - max(stage_seconds)) / chunks
