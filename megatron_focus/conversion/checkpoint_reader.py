"""Whole tensors of a distributed checkpoint, whatever the layout it was written at.

Megatron stacks the layers of a block into one tensor and stores norms under Transformer Engine's names; the conversion
works with one tensor a layer, under the local spec's names.
"""

import re
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from torch import Tensor

_STACKED = re.compile(r"(.*decoder\.layers)\.(.*)")
_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


def read_model(folder: Path) -> dict[str, Tensor]:
    """The model's weights by name, one entry a layer. ``torch.distributed`` must be initialised (one rank is enough).

    Args:
        folder: a complete checkpoint (``iter_0000500``).

    Raises:
        ValueError: the folder is not a checkpoint.
    """
    if not (folder / ".metadata").is_file():
        raise ValueError(f"{folder} is not a complete checkpoint: it has no .metadata")
    metadata = dist_checkpointing.load_tensors_metadata(str(folder))
    wanted = {key: tensor for key, tensor in metadata.items() if not key.startswith("optimizer.")}
    loaded = dist_checkpointing.load(wanted, str(folder), validate_access_integrity=False)
    tensors = {key: loaded[key] for key in wanted}
    return {name: tensor for key, stacked in tensors.items() for name, tensor in _unstack(key, stacked).items()}


def _unstack(key: str, tensor: Tensor) -> dict[str, Tensor]:
    match = _STACKED.fullmatch(key)
    if match is None:
        return {key: tensor}
    block, name = match[1], match[2]
    for stored, local in _NORMS.items():
        if name.startswith(stored):
            name = local + name.removeprefix(stored)
    return {f"{block}.{layer}.{name}": part for layer, part in enumerate(torch.unbind(tensor))}
