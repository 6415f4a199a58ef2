"""Parameters of a model chunk on one tensor-parallel rank, and the bytes that the trainer keeps for them.

Follows ``training/build.py`` (one flat buffer of parameters and one of fp32 gradients a chunk, under the distributed
optimizer) and Megatron-Core's mixed-precision Adam.
"""

import math
from dataclasses import dataclass

from megatron_focus.config.schema import ModelConfig, ParallelConfig, RunConfig
from megatron_focus.planning.chunks import Chunk

_ALIGNMENT, _SHARD_ALIGNMENT = 64, 128
"""Elements: Megatron-Core starts parameters at multiples of the first and ends buffers at multiples of the second."""


@dataclass(frozen=True, kw_only=True)
class ParameterBytes:
    """Bytes on one rank."""

    parameters: float
    gradients: float
    optimizer: float
    largest: float
    """Elements of the largest parameter, whose gradient exists beside the buffer for a moment."""
    trained: float
    """Elements that are trained."""

    @property
    def total(self) -> float:
        """Parameters, gradients and optimizer state together."""
        return self.parameters + self.gradients + self.optimizer


def chunk_parameters(model: ModelConfig, parallel: ParallelConfig, chunk: Chunk) -> dict[str, list[int]]:
    """Elements of each parameter of the chunk on one tensor-parallel rank, by module (names as in ``freeze``)."""
    tp, language = parallel.tensor_model_parallel_size, model.language
    head = language.kv_channels or language.hidden_size // language.num_attention_heads
    query, key_value = head * language.num_attention_heads, head * language.num_query_groups
    width, ffn = language.hidden_size, language.ffn_hidden_size
    layer = [width * (query + 2 * key_value) // tp, query * width // tp, 2 * ffn * width // tp, ffn * width // tp]
    layer += [width, width] + ([(query + 2 * key_value) // tp] if language.add_qkv_bias else [])
    parameters = {"language_model": layer * chunk.num_layers}
    embedding = model.language.padded_vocab_size * width // tp
    if chunk.first:
        parameters |= _vision_parameters(model, tp)
        parameters["language_model"] = parameters["language_model"] + [embedding]
    if chunk.last:
        tied_here = chunk.first and language.share_embeddings_and_output_weights
        parameters["language_model"] = parameters["language_model"] + [width] + ([] if tied_here else [embedding])
    return parameters


def _vision_parameters(model: ModelConfig, tp: int) -> dict[str, list[int]]:
    vision, image, out = model.vision, model.image, model.language.hidden_size
    width, ffn, cells = vision.hidden_size, vision.ffn_hidden_size, image.cells_per_side**2
    layer = [3 * width * width // tp, 3 * width // tp, width * width // tp, width, width, width, width, width]
    layer += [width * ffn // tp, ffn // tp, ffn * width // tp, width]
    tower = [3 * image.patch_size**2 * width, width, (cells + 1) * width, width, width]
    parameters = {
        "vision_tower": tower + layer * (vision.num_layers - 1),
        "projector": [width * out // tp, out // tp, out * out // tp, out, out],
    }
    if model.vision_sampler.enabled and model.vision_sampler.method == "learned":
        scales = len(model.vision_sampler.scales)
        parameters["vision_sampler"] = [cells * scales, scales]
    return parameters


def chunk_bytes(config: RunConfig, chunk: Chunk, data_parallel_size: int) -> ParameterBytes:
    """What one rank keeps for the chunk between steps."""
    bf16, sharded = config.training.precision == "bf16", config.parallel.use_distributed_optimizer
    element = 2 if bf16 else 4
    by_module = chunk_parameters(config.model, config.parallel, chunk)
    frozen = [n for name, sizes in by_module.items() if name in config.optimizer.freeze for n in sizes]
    trained = [n for name, sizes in by_module.items() if name not in config.optimizer.freeze for n in sizes]
    elements = float(sum(trained))
    if sharded and trained:
        aligned = sum(-(-n // _ALIGNMENT) * _ALIGNMENT for n in trained)
        divisor = math.lcm(data_parallel_size, _SHARD_ALIGNMENT)
        elements = float(-(-aligned // divisor) * divisor)
    shards = data_parallel_size if sharded else 1
    # Two moments in fp32, and in bf16 training a main copy in fp32. Gradients are always reduced in fp32.
    state = 8 + (4 if bf16 else 0)
    return ParameterBytes(
        parameters=element * (elements + sum(frozen)),
        gradients=4 * elements,
        optimizer=state * elements / shards,
        largest=float(max(trained, default=0)),
        trained=float(sum(trained)),
    )
