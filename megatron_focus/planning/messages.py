"""Bytes that one rank sends for its parallel groups, rings assumed.

Shapes: p ranks of a group. An all-reduce of B bytes moves 2 (p - 1) / p B on each rank, a gather or scatter half.
"""

from megatron_focus.config.schema import RunConfig
from megatron_focus.planning.activations import Activations
from megatron_focus.planning.chunks import Chunk
from megatron_focus.planning.parameters import ParameterBytes
from megatron_focus.planning.work import recomputed_layers
from megatron_focus.planning.workload import RowLoad, together


def tensor_parallel_bytes(config: RunConfig, chunk: Chunk, row: RowLoad, *, exposed: bool = False) -> float:
    """Of one microbatch on one chunk, forward, backward and recomputation.

    Args:
        config: the run.
        chunk: of the model.
        row: the microbatch.
        exposed: only what computation waits for. Megatron-Core gathers inputs for the weights' gradients under sequence
            parallelism while it computes those of the inputs.
    """
    tp, activations = config.parallel.tensor_model_parallel_size, Activations(config)
    if tp == 1:
        return 0.0
    ring, e, width = (tp - 1) / tp, activations.element, config.model.language.hidden_size
    sequence_parallel = config.parallel.sequence_parallel
    full = config.parallel.recompute_granularity == "full"
    layers = row.layers[chunk.start : chunk.end]
    again = recomputed_layers(config, len(layers)) if full else 0
    # Attention and MLP: an all-reduce each way, or a gather and a scatter of the same bytes. Under sequence parallelism
    # the inputs are gathered once more for the weights' gradients.
    passes = 8 + (2 if sequence_parallel and not exposed else 0)
    sent = ring * e * width * (passes * together(layers).tokens + 4 * together(layers[:again]).tokens)
    if chunk.first:
        sent += _first_chunk_bytes(config, row, ring, e)
    if chunk.last:
        sent += 2 * ring * e * width * row.labels
        if sequence_parallel and row.layers:
            sent += ring * e * width * row.layers[-1].tokens
    return sent


def _first_chunk_bytes(config: RunConfig, row: RowLoad, ring: float, element: int) -> float:
    vision, model = config.model.vision, config.model
    cells = row.tiles * model.image.cells_per_side**2
    tokens = cells + row.tiles
    trained = "vision_tower" not in config.optimizer.freeze
    full = trained and config.parallel.recompute_granularity == "full"
    layers = vision.num_layers - 1
    again = recomputed_layers(config, layers) if full else 0
    reduces = 2 * (layers * (2 if trained else 1) + again)
    sent = reduces * 2 * ring * element * vision.hidden_size * tokens
    sent += 2 * ring * element * cells * (model.language.hidden_size + vision.hidden_size)
    return sent + 2 * ring * element * row.text * model.language.hidden_size


def boundary_bytes(config: RunConfig, chunk: Chunk, row: RowLoad) -> float:
    """Of one microbatch at the end of a chunk: hidden states forward, or their gradient back; each rank its shard."""
    if chunk.last:
        return 0.0
    return Activations(config).hidden(row.layers[max(chunk.end - 1, 0)].tokens)


def gradient_bytes(config: RunConfig, kept: ParameterBytes, data_parallel_size: int) -> float:
    """Of one step: fp32 gradients, scattered under the distributed optimizer and reduced to all without it."""
    ring = (data_parallel_size - 1) / data_parallel_size
    return ring * kept.gradients * (1 if config.parallel.use_distributed_optimizer else 2)


def parameter_bytes(config: RunConfig, kept: ParameterBytes, data_parallel_size: int) -> float:
    """Of one step: updated parameters gathered from their shards; the distributed optimizer's alone."""
    if not config.parallel.use_distributed_optimizer:
        return 0.0
    element = 2 if config.training.precision == "bf16" else 4
    return (data_parallel_size - 1) / data_parallel_size * element * kept.gradients / 4
