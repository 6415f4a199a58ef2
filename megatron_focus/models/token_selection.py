"""The text-guided sampler on a packed, possibly tensor-parallel row: which tokens stay before a layer.

Shapes: T tokens of the row, B samples that drop here, n query heads and g key groups of this rank, d head size.
"""

from functools import partial

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from megatron_focus.models.core_attention import rotate
from megatron_focus.models.packed_layout import INSTRUCTION, PAD, VISUAL, PackedLayout
from megatron_focus.parallel.collectives import max_over, of_first_rank
from megatron_focus.samplers.text_guided import importance, select_by_share


@torch.no_grad()
def kept_tokens(
    layer: TransformerLayer,
    hidden_states: Tensor,
    layout: PackedLayout,
    layer_index: int,
    angles: Tensor,
    pg_collection: ProcessGroupCollection,
) -> Tensor:
    """Tokens that enter layer ``layer_index``, int64 [T'] in rising order; padding never among them.

    Queries and keys are the layer's own: its input norm, its projections, RoPE at the original positions. Every
    tensor-parallel rank takes part and gets the same answer.

    Args:
        layer: the layer before which tokens are dropped.
        hidden_states: [T, 1, C], or this rank's shard of it under sequence parallelism.
        layout: the row's layout, padding included.
        layer_index: the layer's number, from 0.
        angles: RoPE angles [T, 1, 1, d].
        pg_collection: Megatron's process groups.
    """
    stays = layout.kind != PAD
    samples = _samples_to_drop(layout, layer_index)
    if len(samples) > 0:
        queries, query_valid = _group(layout, samples, INSTRUCTION)
        keys, key_valid = _group(layout, samples, VISUAL)
        # Under sequence parallelism the QKV projection gathers the row itself; else only the tokens that take part.
        place = torch.arange(len(layout), device=samples.device)
        if not layer.config.sequence_parallel:
            rows = torch.cat([queries[query_valid], keys[key_valid]])
            place[rows] = torch.arange(len(rows), device=samples.device)
            hidden_states, angles = hidden_states[rows], angles[rows]
        query, key, _ = layer.self_attention.get_query_key_value_tensors(layer.input_layernorm(hidden_states))
        query = rotate(query[:, 0], angles, layer.config, pg_collection)[place[queries] * query_valid]
        key = rotate(key[:, 0], angles, layer.config, pg_collection)[place[keys] * key_valid]
        scores = importance(query, key, query_valid, key_valid, partial(max_over, group=pg_collection.tp))
        image = layout.image[keys].masked_fill(~key_valid, -1).long()
        keep = of_first_rank(select_by_share(scores, key_valid, image, layout.gamma[samples]), pg_collection.tp)
        stays[keys[key_valid & ~keep]] = False
    return stays.nonzero().squeeze(1)


def _samples_to_drop(layout: PackedLayout, layer_index: int) -> Tensor:
    """Samples that drop at this layer and have both visual and instruction tokens, int64 [B]."""
    none = torch.zeros_like(layout.drop_layer)
    visual, instruction = (
        none.index_add(0, layout.sample, (layout.kind == kind).to(none.dtype)) for kind in (VISUAL, INSTRUCTION)
    )
    return ((layout.drop_layer == layer_index) & (visual > 0) & (instruction > 0)).nonzero().squeeze(1)


def _group(layout: PackedLayout, samples: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    """The tokens of one kind, padded to a block per sample.

    Returns:
        token of each slot (0 where padded), and whether the slot is filled; both [B, longest].
    """
    slot_of_sample = torch.full((len(layout.seqlens),), -1, device=samples.device)
    slot_of_sample[samples] = torch.arange(len(samples), device=samples.device)
    tokens = ((layout.kind == kind) & (slot_of_sample[layout.sample] >= 0)).nonzero().squeeze(1)
    slot = slot_of_sample[layout.sample[tokens]]
    lengths = torch.bincount(slot, minlength=len(samples))
    starts = lengths.cumsum(0) - lengths
    place = torch.arange(len(tokens), device=tokens.device) - starts[slot]
    longest = int(lengths.max())
    block = tokens.new_zeros(len(samples), longest)
    block[slot, place] = tokens
    filled = torch.arange(longest, device=tokens.device) < lengths[:, None]
    return block, filled
