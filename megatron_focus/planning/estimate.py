"""One layout on one cluster: memory, step time and where it goes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from megatron_focus.config.schema import RunConfig
from megatron_focus.planning.chunks import Chunk, chunks_of, configured_sizes, of_stage
from megatron_focus.planning.hardware import GIB, Cluster
from megatron_focus.planning.memory import StageMemory, stage_memory
from megatron_focus.planning.messages import boundary_bytes, gradient_bytes, parameter_bytes, tensor_parallel_bytes
from megatron_focus.planning.parameters import chunk_bytes
from megatron_focus.planning.schedule import bubble_seconds
from megatron_focus.planning.work import Work, chunk_work, model_flops, recompute_work
from megatron_focus.planning.workload import RowLoad, Workload


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step, along the slowest stage of the replica with most rows."""

    useful: float
    """All work spread evenly over all GPUs. Layouts differ in what each tensor-parallel rank does whole: norms and
    residuals without sequence parallelism, the vision-guided sampler."""
    uneven: float
    """More than that on the slowest stage: stages of unlike work, rows that do not divide over the replicas. Below 0
    where the slowest stage is so by its messages."""
    recompute: float
    tensor_parallel: float
    """Messages of the tensor-parallel group."""
    bubble: float
    """Waiting at the pipeline's two ends."""
    pipeline: float
    """Messages between stages."""
    data_parallel: float
    """Gradients and parameters."""
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True, kw_only=True)
class Messages:
    """Bytes that the busiest rank of each kind sends in a step."""

    tensor_parallel: float
    pipeline: float
    data_parallel: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is expected of a layout."""

    config: RunConfig
    """The configuration with the layout in its ``parallel`` section."""
    sizes: tuple[int, ...]
    """Decoder layers of each chunk, in their order."""
    data_parallel_size: int
    rows_per_replica: int
    """Rows of the replica with most of them."""
    memory: tuple[StageMemory, ...]
    """Of each stage."""
    stage_seconds: tuple[float, ...]
    """Forward and backward of one row on each stage, its tensor-parallel messages included."""
    time: StepTime
    messages: Messages
    flops: float
    """Executed in a step by all ranks, recomputation included."""
    model_flops: float
    """Of the model itself in a step, as the trainer's MFU counts them."""
    mfu: float
    memory_limit: float
    """Bytes of a GPU."""
    tensor_parallel_across_nodes: bool
    mean_row: RowLoad

    @property
    def fullest(self) -> int:
        """The stage that needs most memory."""
        return max(range(len(self.memory)), key=lambda stage: self.memory[stage].total)

    @property
    def fits(self) -> bool:
        """Whether every stage fits."""
        return self.memory[self.fullest].total <= self.memory_limit


def chunk_seconds(config: RunConfig, chunk: Chunk, row: RowLoad, cluster: Cluster) -> tuple[float, float, float]:
    """(work, recomputation, tensor-parallel messages) of one row on a chunk, forward and backward, in seconds."""
    tp = config.parallel.tensor_model_parallel_size
    sent = tensor_parallel_bytes(config, chunk, row, exposed=True)
    return (
        work_seconds(chunk_work(config, chunk, row), tp, cluster),
        work_seconds(recompute_work(config, chunk, row), tp, cluster),
        sent / cluster.bandwidth(tp, min(tp, cluster.node_size)),
    )


def work_seconds(work: Work, tensor_parallel_size: int, cluster: Cluster) -> float:
    """Time of ``work`` at the attainable speeds."""
    gpu, assumed = cluster.gpu, cluster.assumptions
    matmul = work.matmul / tensor_parallel_size / (gpu.peak_flops * assumed.matmul_share)
    attention = work.attention / tensor_parallel_size / (gpu.peak_flops * assumed.attention_share)
    return matmul + attention + work.moved / (gpu.memory_bandwidth * assumed.memory_share)


def estimate(config: RunConfig, load: Workload, cluster: Cluster) -> Estimate:
    """Estimate a step of a configuration that ``validate`` accepts for this many GPUs."""
    parallel = config.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    dp = cluster.gpus // (tp * pp)
    sizes = configured_sizes(config.model, parallel)
    chunks = chunks_of(sizes)
    per_stage = len(chunks) // pp
    rows = max(1, math.ceil(load.rows / dp - 1e-9))
    # The interleaved schedule runs whole groups of a row a stage; what is missing are fillers, which cost nothing.
    microbatches = -(-rows // pp) * pp if per_stage > 1 else rows
    seconds = [chunk_seconds(config, chunk, load.mean, cluster) for chunk in chunks]
    stages = [_sum(seconds[stage::pp]) for stage in range(pp)]
    slowest = max(range(pp), key=lambda stage: sum(stages[stage]))
    stage_seconds = [sum(parts) for parts in stages]
    work = [chunk_work(config, chunk, load.mean) for chunk in chunks]
    again = [recompute_work(config, chunk, load.mean) for chunk in chunks]
    useful = load.rows * sum(part for part, _, _ in seconds) / (pp * dp)
    pipeline_bytes = 2 * max(
        sum(boundary_bytes(config, chunk, load.mean) for chunk in of_stage(chunks, stage, pp)) for stage in range(pp)
    )
    exchange, update, sent = _data_parallel(config, chunks, dp, cluster, rows, stage_seconds)
    time = StepTime(
        useful=useful,
        uneven=rows * stages[slowest][0] - useful,
        recompute=rows * stages[slowest][1],
        tensor_parallel=rows * stages[slowest][2],
        bubble=bubble_seconds(stage_seconds, per_stage),
        pipeline=0.0 if per_stage > 1 or pp == 1 else rows * pipeline_bytes / cluster.bandwidth(tp * dp + 1, 1),
        data_parallel=exchange,
        optimizer=update,
    )
    of_model = load.rows * model_flops(config, load.mean)
    return Estimate(
        config=config,
        sizes=tuple(sizes),
        data_parallel_size=dp,
        rows_per_replica=rows,
        memory=tuple(stage_memory(config, chunks, load.worst, load.mean, microbatches, dp, cluster)),
        stage_seconds=tuple(stage_seconds),
        time=time,
        messages=Messages(
            tensor_parallel=rows
            * max(
                sum(tensor_parallel_bytes(config, chunk, load.mean) for chunk in of_stage(chunks, stage, pp))
                for stage in range(pp)
            ),
            pipeline=rows * pipeline_bytes if pp > 1 else 0.0,
            data_parallel=sent,
        ),
        flops=load.rows * sum(part.flops for part in (*work, *again)),
        model_flops=of_model,
        mfu=of_model / (time.total * cluster.gpus * cluster.gpu.peak_flops),
        memory_limit=cluster.gpu.memory_gib * GIB,
        tensor_parallel_across_nodes=tp > cluster.node_size,
        mean_row=load.mean,
    )


def _sum(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    work, again, messages = (sum(values) for values in zip(*parts, strict=True))
    return work, again, messages


def _data_parallel(
    config: RunConfig, chunks: Sequence[Chunk], dp: int, cluster: Cluster, rows: int, stage_seconds: Sequence[float]
) -> tuple[float, float, float]:
    """(exposed seconds of messages, seconds of the update, bytes sent) of the stage with most parameters."""
    parallel = config.parallel
    pp, tp = parallel.pipeline_model_parallel_size, parallel.tensor_model_parallel_size
    bandwidth = cluster.bandwidth(tp * dp, max(1, cluster.node_size // tp))
    memory = cluster.gpu.memory_bandwidth * cluster.assumptions.memory_share
    exchange = update = most = 0.0
    for stage in range(pp):
        kept = [chunk_bytes(config, chunk, dp) for chunk in of_stage(chunks, stage, pp)]
        gradients = sum(gradient_bytes(config, part, dp) for part in kept)
        parameters = sum(parameter_bytes(config, part, dp) for part in kept)
        reduced, gathered = gradients / bandwidth, parameters / bandwidth
        if parallel.overlap_grad_reduce:  # with the last row's backward pass, two thirds of its time
            reduced = max(0.0, reduced - stage_seconds[stage] * 2 / 3)
        if parallel.overlap_param_gather:  # with the first row's forward pass
            gathered = max(0.0, gathered - stage_seconds[stage] / 3)
        exchange = max(exchange, reduced + gathered)
        # Adam reads and writes its state, and reads the gradients that the norm has read before.
        shards = dp if parallel.use_distributed_optimizer else 1
        touched = sum(2 * part.optimizer + 2 * part.gradients / shards for part in kept)
        update = max(update, touched / memory)
        most = max(most, gradients + parameters)
    return exchange, update, most
