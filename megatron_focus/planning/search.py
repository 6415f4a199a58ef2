"""All layouts of a configuration on a cluster, the best first, with the reason why each other one loses."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from megatron_focus.config.schema import ParallelConfig, RunConfig
from megatron_focus.config.validation import validate
from megatron_focus.planning.balance import Costs, balanced_sizes, layer_costs
from megatron_focus.planning.chunks import even_sizes, layout_string
from megatron_focus.planning.estimate import Estimate, estimate
from megatron_focus.planning.hardware import GIB, Cluster
from megatron_focus.planning.workload import Workload

LARGEST_TENSOR_PARALLEL, LARGEST_PIPELINE = 16, 32
CHUNKS_PER_STAGE = (1, 2, 4)

PARTS = {
    "useful": "work that tensor parallelism does not divide",
    "uneven": "uneven work over stages or replicas",
    "recompute": "recomputation",
    "tensor_parallel": "tensor-parallel messages",
    "bubble": "pipeline bubble",
    "pipeline": "messages between stages",
    "data_parallel": "data-parallel messages",
    "optimizer": "optimizer step",
}
"""Parts of ``StepTime``, for people: why a layout takes longer than another."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One layout in the ranking."""

    estimate: Estimate
    reason: str
    """Why it is not the first; empty for the first if it fits."""


LoadOf = Callable[[RunConfig], Workload]
"""The rows of a configuration's steps."""


def layout_refused(config: RunConfig, gpus: int) -> str | None:
    """Why the configuration's own layout cannot run on so many GPUs; None if it can.

    Raises:
        ValueError: more than its layout is wrong.
    """
    try:
        validate(config, gpus, here=False)
    except ValueError as refusal:
        single = replace(
            config.parallel,
            tensor_model_parallel_size=1,
            pipeline_model_parallel_size=1,
            virtual_pipeline_model_parallel_size=None,
            pipeline_model_parallel_layout=None,
            sequence_parallel=False,
        )
        try:
            validate(replace(config, parallel=single), gpus, here=False)
        except ValueError:
            raise refusal from None
        return str(refusal)
    return None


def search(config: RunConfig, load_of: LoadOf, cluster: Cluster, *, frugal: bool = False) -> list[Ranked]:
    """The best variant of each TP x PP x VPP, those that fit first, by step time; then by what they lack.

    Args:
        config: the run; of its ``parallel`` section only what no layout decides is kept, and every layout packs as many
            rows as divide over its replicas (``data.rows_multiple_of``).
        load_of: rows of a step.
        cluster: the GPUs.
        frugal: try full recomputation alone, to find out whether anything fits.
    """
    best: dict[tuple[int, int, int], Estimate] = {}
    costs: dict[tuple[int, bool, str | None, int], Costs] = {}
    loads: dict[int, Workload] = {}
    for parallel in _grids(config, cluster, frugal):
        run = _even_rows(config, parallel, cluster)
        try:
            validate(_split(run, parallel), cluster.gpus, here=False)
        except ValueError:
            continue
        tp, rows = parallel.tensor_model_parallel_size, run.data.rows_multiple_of
        key = (tp, parallel.sequence_parallel, parallel.recompute_granularity, rows)
        if rows not in loads:
            loads[rows] = load_of(run)
        if key not in costs:
            costs[key] = layer_costs(replace(run, parallel=parallel), loads[rows].mean, cluster)
        shape = (tp, parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size or 1)
        for candidate in _splits(run, parallel, costs[key]):
            found = estimate(candidate, loads[rows], cluster)
            if shape not in best or _order(found) < _order(best[shape]):
                best[shape] = found
            if found.fits:  # the even split is for where the balanced one does not
                break
    ranked = sorted(best.values(), key=_order)
    return [Ranked(estimate=each, reason=reason(each, ranked[0])) for each in ranked]


def reason(candidate: Estimate, best: Estimate) -> str:
    """Why ``candidate`` is not the best: what does not fit, or how much longer it takes and on what it loses most."""
    if not candidate.fits:
        stage = candidate.fullest
        memory = candidate.memory[stage]
        return (
            f"does not fit: stage {stage} needs {memory.total / GIB:.1f} of {candidate.memory_limit / GIB:.0f} GiB, "
            f"{getattr(memory, memory.largest) / GIB:.1f} of them {memory.largest}"
        )
    if candidate is best:
        return ""
    lost = {part: getattr(candidate.time, part) - getattr(best.time, part) for part in PARTS}
    part = max(lost, key=lambda name: lost[name])
    across = part == "tensor_parallel" and candidate.tensor_parallel_across_nodes
    longer = candidate.time.total - best.time.total
    return f"+{longer:.2f} s, most by {PARTS[part]}{' across nodes' if across else ''}: +{lost[part]:.2f} s"


def _order(found: Estimate) -> tuple[float, ...]:
    lacking = max(0.0, found.memory[found.fullest].total - found.memory_limit)
    parallel = found.config.parallel
    return lacking, found.time.total, parallel.pipeline_model_parallel_size, len(found.sizes)


def _grids(config: RunConfig, cluster: Cluster, frugal: bool) -> Iterator[ParallelConfig]:
    """Every TP, PP, VPP, sequence parallelism and recomputation that could be tried."""
    layers = config.model.language.num_layers
    tensor = [2**i for i in range(6) if 2**i <= min(LARGEST_TENSOR_PARALLEL, cluster.gpus)]
    for tp in tensor:
        for pp in range(1, min(LARGEST_PIPELINE, layers, cluster.gpus // tp) + 1):
            if cluster.gpus % (tp * pp):
                continue
            for chunks in CHUNKS_PER_STAGE if pp > 1 else (1,):
                if pp * chunks > layers:
                    continue
                for granularity in ("full",) if frugal else (None, "selective", "full"):
                    for sequence_parallel in (True, False) if tp > 1 else (False,):
                        yield replace(
                            config.parallel,
                            tensor_model_parallel_size=tp,
                            pipeline_model_parallel_size=pp,
                            virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
                            pipeline_model_parallel_layout=None,
                            sequence_parallel=sequence_parallel,
                            recompute_granularity=granularity,
                            recompute_method="uniform" if granularity == "full" else None,
                            recompute_num_layers=1 if granularity == "full" else None,
                        )


def _even_rows(config: RunConfig, parallel: ParallelConfig, cluster: Cluster) -> RunConfig:
    replicas = cluster.gpus // (parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size)
    rows = rows_that_divide(parallel, replicas, config.training.global_batch_size) or config.data.rows_multiple_of
    return replace(config, data=replace(config.data, rows_multiple_of=rows))


def rows_that_divide(parallel: ParallelConfig, replicas: int, batch: int) -> int | None:
    """As many rows as divide over the replicas, and for the interleaved schedule over the stages of each.

    Args:
        parallel: the layout.
        replicas: data-parallel ranks.
        batch: samples of a step, each of which may be a row.

    Returns:
        what ``data.rows_multiple_of`` should be a multiple of; None where there are fewer samples than replicas.
    """
    stages = parallel.pipeline_model_parallel_size if parallel.virtual_pipeline_model_parallel_size else 1
    return next((multiple for multiple in (replicas * stages, replicas) if multiple <= batch), None)


def _split(config: RunConfig, parallel: ParallelConfig) -> RunConfig:
    """The configuration with layers as even as they go."""
    chunks = parallel.pipeline_model_parallel_size * (parallel.virtual_pipeline_model_parallel_size or 1)
    return _with_sizes(config, parallel, even_sizes(config.model.language.num_layers, chunks))


def _splits(config: RunConfig, parallel: ParallelConfig, costs: Costs) -> Iterator[RunConfig]:
    """The balanced split, and the even one, which may fit where the balanced does not."""
    stages = parallel.pipeline_model_parallel_size
    if stages > 1:
        sizes = balanced_sizes(costs, stages, parallel.virtual_pipeline_model_parallel_size or 1)
        yield _with_sizes(config, parallel, sizes)
    yield _split(config, parallel)


def _with_sizes(config: RunConfig, parallel: ParallelConfig, sizes: list[int]) -> RunConfig:
    layout = layout_string(sizes) if len(set(sizes)) > 1 else None
    return replace(config, parallel=replace(parallel, pipeline_model_parallel_layout=layout))


def overrides(found: Estimate) -> dict[str, object]:
    """The settings that make the layout, by key."""
    settings: dict[str, object] = {f"parallel.{key}": value for key, value in asdict(found.config.parallel).items()}
    return settings | {"data.rows_multiple_of": found.config.data.rows_multiple_of}
