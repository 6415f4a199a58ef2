"""What Megatron's options change in a plan."""

import dataclasses

from megatron_focus.config.loading import load_config
from megatron_focus.planning.activations import Activations
from megatron_focus.planning.workload import LayerLoad, RowLoad

FUSED = ["parallel.cross_entropy_loss_fusion=true"]


def head_bytes(overrides):
    config = load_config(None, overrides)
    empty = {field.name: 0.0 for field in dataclasses.fields(RowLoad)}
    row = RowLoad(**empty | {"layers": [LayerLoad(tokens=0.0, squares=0.0)], "labels": 10.0})
    return Activations(config).head(row)


def test_transformer_engines_loss_keeps_no_fp32_softmax():
    vocabulary = load_config(None).model.language.padded_vocab_size
    plain = head_bytes([])
    assert head_bytes(FUSED) == plain  # Megatron's keeps it, too
    assert plain - head_bytes([*FUSED, "parallel.cross_entropy_fusion_impl=te"]) == 10 * 2 * vocabulary
