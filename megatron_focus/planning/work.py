"""Floating-point operations and bytes moved by a chunk for one row, as executed.

``models/flops.py`` counts the model's own operations, for MFU; here everything that really runs is counted: backward
passes of frozen parts are left out, recomputed layers and the samplers are added. Causal attention is counted by its
half of the square, and its backward pass as 2.5 forward passes, because fused attention computes the scores again.
"""

from dataclasses import dataclass

from megatron_focus.config.schema import ModelConfig, RunConfig
from megatron_focus.models.flops import decoder_layer_flops, head_flops, training_passes, vision_flops
from megatron_focus.planning.activations import Activations
from megatron_focus.planning.chunks import Chunk
from megatron_focus.planning.workload import LayerLoad, RowLoad, together

ATTENTION_BACKWARD = 2.5
"""Backward over forward of fused attention: five products of the scores' size instead of two."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of all tensor-parallel ranks together, and bytes moved by memory-bound operations on each of them."""

    matmul: float = 0.0
    attention: float = 0.0
    moved: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            matmul=self.matmul + other.matmul,
            attention=self.attention + other.attention,
            moved=self.moved + other.moved,
        )

    @property
    def flops(self) -> float:
        """All of them."""
        return self.matmul + self.attention


def model_flops(config: RunConfig, row: RowLoad) -> float:
    """Forward and backward FLOPs of the model itself, as the trainer's MFU counts them."""
    model, (tower, decoder) = config.model, training_passes(config.optimizer.freeze)
    layers = sum(_layer_forward(model, together(row.layers)))
    return tower * vision_flops(model, 1) * row.tiles + decoder * (layers + head_flops(model, 1) * row.labels)


def chunk_work(config: RunConfig, chunk: Chunk, row: RowLoad) -> Work:
    """What one microbatch costs on the chunk, without recomputation."""
    work, frozen = Work(), config.optimizer.freeze
    backward = 1.0 if "language_model" in frozen else 2.0
    activations = Activations(config)
    load = together(row.layers[chunk.start : chunk.end])
    matmul, attention = _layer_forward(config.model, load)
    work += Work(
        matmul=matmul * (1 + backward),
        attention=attention * (1 + ATTENTION_BACKWARD),
        # Norms, SwiGLU, RoPE and residuals read and write about what a layer saves, and twice that on the way back.
        moved=3 * activations.decoder_layer(load, row.samples, selective=False),
    )
    if chunk.last:
        work += Work(matmul=head_flops(config.model, 1) * row.labels * (1 + backward))
    if chunk.first:
        work += _vision_work(config, row, activations)
    return work + _selection_work(config, chunk, row)


def recompute_work(config: RunConfig, chunk: Chunk, row: RowLoad) -> Work:
    """What the backward pass computes a second time."""
    parallel, work = config.parallel, Work()
    if parallel.recompute_granularity is None:
        return work
    activations = Activations(config)
    full = parallel.recompute_granularity == "full"
    load = together(row.layers[chunk.start : chunk.start + recomputed_layers(config, chunk.num_layers)])
    matmul, attention = _layer_forward(config.model, load)
    moved = activations.decoder_layer(load, row.samples, selective=False) if full else 0.0
    work += Work(matmul=matmul if full else 0.0, attention=attention, moved=moved)
    if chunk.first and "vision_tower" not in config.optimizer.freeze:
        matmul, attention = _tower_layer(config.model)
        count = row.tiles * recomputed_layers(config, config.model.vision.num_layers - 1)
        work += Work(matmul=matmul * count if full else 0.0, attention=attention * count)
    return work


def recomputed_layers(config: RunConfig, layers: int) -> int:
    """How many of a block's layers are computed again."""
    parallel = config.parallel
    if parallel.recompute_granularity is None:
        return 0
    if parallel.recompute_method == "block":
        assert parallel.recompute_num_layers is not None
        return min(parallel.recompute_num_layers, layers)
    return layers


def _layer_forward(model: ModelConfig, load: LayerLoad) -> tuple[float, float]:
    """(matrix products, attention)."""
    attention_of_one = decoder_layer_flops(model, [2]) / 2 - decoder_layer_flops(model, [1])
    matmul_of_one = decoder_layer_flops(model, [1]) - attention_of_one
    return matmul_of_one * load.tokens, attention_of_one * load.squares


def _tower_layer(model: ModelConfig) -> tuple[float, float]:
    """(matrix products, attention) of one layer of the vision tower over one tile."""
    vision = model.vision
    length, width = model.image.cells_per_side**2 + 1, vision.hidden_size
    return (
        float(2 * length * width * (4 * width + 2 * vision.ffn_hidden_size)),
        float(4 * length * length * width),
    )


def _vision_work(config: RunConfig, row: RowLoad, activations: Activations) -> Work:
    model, frozen = config.model, config.optimizer.freeze
    vision, cells = model.vision, model.image.cells_per_side**2
    matmul, attention = (part * (vision.num_layers - 1) for part in _tower_layer(model))
    patches = 2.0 * cells * 3 * model.image.patch_size**2 * vision.hidden_size
    projector = vision_flops(model, 1) - matmul - attention - patches
    into_projector = 2.0 * cells * vision.hidden_size * model.language.hidden_size
    trained = "vision_tower" not in frozen
    # The pixels need no gradient, nor do the features of a frozen tower.
    total = matmul * (3 if trained else 1) + patches * (2 if trained else 1)
    total += projector * (2 if "projector" in frozen else 3) - (0 if trained else into_projector)
    return Work(
        matmul=total * row.tiles,
        attention=attention * (1 + ATTENTION_BACKWARD if trained else 1) * row.tiles,
        moved=3 * (activations.vision(row.tiles, None, 0) + activations.sampler(row.tiles, row.visual)),
    )


def _selection_work(config: RunConfig, chunk: Chunk, row: RowLoad) -> Work:
    """The samplers' own products: every rank runs the vision-guided one whole, on the first chunk."""
    model = config.model
    matmul, language = 0.0, model.language
    if chunk.first and model.vision_sampler.enabled:
        cells = model.image.cells_per_side**2
        windows = row.tiles * cells / model.vision_sampler.window**2
        scales = len(model.vision_sampler.scales)
        matmul += config.parallel.tensor_model_parallel_size * 3 * windows * 2 * cells * (language.hidden_size + scales)
    if row.selection_tokens and model.text_sampler.mode in ("train", "random"):
        first, last = _drop_layers(model)
        here = max(min(chunk.end, last + 1) - max(chunk.start, first), 0) / (last + 1 - first)
        head = language.kv_channels or language.hidden_size // language.num_attention_heads
        query, key = head * language.num_attention_heads, head * language.num_query_groups
        projected = 2.0 * row.selection_tokens * language.hidden_size * (query + 2 * key)
        matmul += here * (projected + 2.0 * row.selection_pairs * query)
    return Work(matmul=matmul)


def _drop_layers(model: ModelConfig) -> tuple[int, int]:
    """First and last layer before which samples drop in training."""
    sampler = model.text_sampler
    return (sampler.layer_range[0], sampler.layer_range[1]) if sampler.mode == "random" else (sampler.layer,) * 2
