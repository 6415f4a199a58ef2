"""Names in a distributed checkpoint and in the parameter table.

Megatron stacks the layers of a block into one tensor [layers, ...] and stores norms under Transformer Engine's names;
the table has one tensor a layer, under the local spec's names.
"""

import re
from dataclasses import dataclass

_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
"""Transformer Engine's beginning of a name -> the local spec's."""
_OF_LAYER = re.compile(r"(.*decoder\.layers)\.(\d+)\.(.*)")
_STACKED = re.compile(r"(.*decoder\.layers)\.(\D.*)")


@dataclass(frozen=True)
class StoredName:
    """Where a table's tensor lies in a checkpoint."""

    key: str
    layer: int | None
    """Place in the stack; None where the tensor stands alone."""


def stored_name(name: str) -> StoredName:
    """The place of a table's tensor."""
    match = _OF_LAYER.fullmatch(name)
    if match is None:
        return StoredName(name, None)
    block, layer, rest = match.groups()
    for stored, local in _NORMS.items():
        if rest.startswith(local):
            rest = stored + rest.removeprefix(local)
    return StoredName(f"{block}.{rest}", int(layer))


def table_names(key: str, layers: int) -> list[str] | None:
    """The table's names of a stack's tensors, in order; None if ``key`` is not a stack."""
    match = _STACKED.fullmatch(key)
    if match is None:
        return None
    block, rest = match.groups()
    for stored, local in _NORMS.items():
        if rest.startswith(stored):
            rest = local + rest.removeprefix(stored)
    return [f"{block}.{layer}.{rest}" for layer in range(layers)]
