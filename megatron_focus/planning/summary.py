"""What a run says of its layout before it starts."""

from megatron_focus.config.schema import RunConfig
from megatron_focus.planning.estimate import estimate
from megatron_focus.planning.hardware import GPUS, Cluster
from megatron_focus.planning.search import rows_that_divide
from megatron_focus.planning.text import gib, name_of
from megatron_focus.planning.typical import TYPICAL
from megatron_focus.planning.workload import workload

_ANY = GPUS["a100-80gb"]  # the kind decides times; memory is the same on all


def layout_lines(config: RunConfig, world_size: int) -> list[str]:
    """Layout, batch and memory.

    Args:
        config: accepted by ``validate`` for ``world_size`` ranks.
        world_size: number of ranks.
    """
    dp = _replicas(config, world_size)
    rows = config.data.rows_multiple_of
    lines = [
        f"{world_size} ranks: {name_of(config.parallel, dp)}; {config.training.global_batch_size} samples a step"
        + (f", packed into a multiple of {rows} rows" if rows > 1 else "")
    ]
    try:
        load = workload(config, [TYPICAL.lengths(config.model.image)], TYPICAL.kept_vision, TYPICAL.kept_text, "")
    except ValueError as error:  # rows shorter than that sample
        return [*lines, f"its memory is not planned: {error}"]
    found = estimate(config, load, Cluster(gpu=_ANY, gpus=world_size))
    stage = found.fullest
    return [
        *lines,
        f"the fullest rank needs about {gib(found.memory[stage].total)} GiB, {gib(found.memory[stage].activations)} of "
        f"them activations of a full row (stage {stage}; tools/plan.py says how, and what would take less)",
    ]


def idle_ranks(config: RunConfig, world_size: int) -> str | None:
    """A sentence where some replicas would have a row more than others, and so the others wait; None where not."""
    wanted = rows_that_divide(config.parallel, _replicas(config, world_size), config.training.global_batch_size)
    rows = config.data.rows_multiple_of
    if wanted is None:
        return (
            f"training.global_batch_size={config.training.global_batch_size} has fewer samples than there are "
            f"data-parallel ranks, {_replicas(config, world_size)}: some of them only wait"
        )
    if rows % wanted == 0:
        return None
    return (
        f"data.rows_multiple_of={rows}: rows do not divide evenly over {_replicas(config, world_size)} data-parallel "
        f"ranks, so some wait for others; set data.rows_multiple_of={wanted}"
    )


def _replicas(config: RunConfig, world_size: int) -> int:
    parallel = config.parallel
    return world_size // (parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size)
