"""Peak memory of each pipeline stage."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_focus.config.schema import RunConfig
from megatron_focus.planning.activations import Activations
from megatron_focus.planning.attention import ON_CPUS, Attention, attention_on
from megatron_focus.planning.chunks import Chunk, of_stage
from megatron_focus.planning.hardware import GIB, Cluster
from megatron_focus.planning.parameters import chunk_bytes
from megatron_focus.planning.schedule import peak_in_flight
from megatron_focus.planning.work import recomputed_layers
from megatron_focus.planning.workload import LayerLoad, RowLoad, together


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Bytes on one rank of a stage, at the worst row that packing allows and at the mean row."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    """Worst rows in flight, a recomputed group and the backward pass's workspace included."""
    expected_activations: float
    """The same with mean rows."""
    margin: float
    """Assumed: context, NCCL, workspaces, fragmentation."""

    @property
    def static(self) -> float:
        """Parameters, gradients and optimizer state."""
        return self.parameters + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """What the GPU must hold."""
        return self.static + self.activations + self.margin

    @property
    def largest(self) -> str:
        """Name of the largest part."""
        parts = ("parameters", "gradients", "optimizer", "activations")
        return max(parts, key=lambda part: getattr(self, part))


def stage_memory(
    config: RunConfig,
    chunks: Sequence[Chunk],
    worst: RowLoad,
    mean: RowLoad,
    microbatches: int,
    data_parallel_size: int,
    cluster: Cluster,
) -> list[StageMemory]:
    """Memory of each stage."""
    attention, assumptions = attention_on(config, cluster), cluster.assumptions
    stages = config.parallel.pipeline_model_parallel_size
    memories = []
    for stage in range(stages):
        own = of_stage(chunks, stage, stages)
        kept = [chunk_bytes(config, chunk, data_parallel_size) for chunk in own]
        element = 2 if config.training.precision == "bf16" else 4
        weight_gradient = element * max(part.largest for part in kept)
        peaks = []
        for row in (worst, mean):
            flying = peak_in_flight(
                [in_flight_bytes(config, c, row, attention) for c in own], stage, stages, microbatches
            )
            activations = Activations(config, attention)
            passing = max(
                group_bytes(config, c, row, attention) + activations.workspace(row, c.first, c.last) for c in own
            )
            peaks.append(flying + passing + weight_gradient)
        memories.append(
            StageMemory(
                parameters=sum(part.parameters for part in kept),
                gradients=sum(part.gradients for part in kept),
                optimizer=sum(part.optimizer for part in kept),
                activations=peaks[0],
                expected_activations=peaks[1],
                margin=assumptions.fixed_gib * GIB + assumptions.fragmentation * peaks[0],
            )
        )
    return memories


def saved_bytes(config: RunConfig, chunk: Chunk, row: RowLoad, attention: Attention = ON_CPUS) -> float:
    """What autograd keeps of one microbatch between its forward and backward pass on the chunk."""
    parallel, activations = config.parallel, Activations(config, attention)
    granularity = parallel.recompute_granularity
    layers = row.layers[chunk.start : chunk.end]
    again = recomputed_layers(config, len(layers)) if granularity == "full" else 0
    saved = activations.decoder_layer(together(layers[again:]), row.samples, granularity == "selective")
    # A drop inside a group splits it, which this leaves out: it needs groups of several layers.
    every = (parallel.recompute_num_layers or 1) if parallel.recompute_method == "uniform" else 1
    saved += activations.hidden(together(layers[:again:every]).tokens)
    if chunk.first:
        tower = config.model.vision.num_layers - 1
        saved += activations.vision(row.tiles, granularity, recomputed_layers(config, tower))
        saved += activations.projector(row.tiles) + activations.sampler(row.tiles, row.visual)
        saved += activations.fusion(row)
    if chunk.last:
        saved += activations.head(row)
    return saved


def in_flight_bytes(config: RunConfig, chunk: Chunk, row: RowLoad, attention: Attention) -> float:
    """``saved_bytes``, and what the schedule itself holds: the tensors that came from and go to other stages."""
    activations = Activations(config)
    held = 0.0 if chunk.first else activations.hidden(row.layers[max(chunk.start - 1, 0)].tokens)
    held += 0.0 if chunk.last else activations.hidden(row.layers[max(chunk.end - 1, 0)].tokens)
    return saved_bytes(config, chunk, row, attention) + held


def group_bytes(config: RunConfig, chunk: Chunk, row: RowLoad, attention: Attention) -> float:
    """What exists once more while a recomputed group of layers runs backward."""
    parallel, activations = config.parallel, Activations(config, attention)
    granularity = parallel.recompute_granularity
    if granularity is None:
        return 0.0
    layers = row.layers[chunk.start : chunk.end]
    if granularity == "selective":
        longest = max(layers, key=lambda load: load.tokens, default=LayerLoad(tokens=0.0, squares=0.0))
        return activations.core_attention(longest, row.samples)
    every = (parallel.recompute_num_layers or 1) if parallel.recompute_method == "uniform" else 1
    again = layers[: recomputed_layers(config, len(layers))]
    groups = [together(again[i : i + every]) for i in range(0, len(again), every)]
    longest = max(groups, key=lambda load: load.tokens, default=LayerLoad(tokens=0.0, squares=0.0))
    largest = activations.decoder_layer(longest, row.samples, selective=False)
    return max(largest, activations.vision_layer(row.tiles, selective=False)) if chunk.first else largest
