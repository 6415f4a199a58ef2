"""Global tensors from the shards of all ranks, by the names and offsets of Megatron's sharded state."""

from collections.abc import Iterable

import numpy as np
import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.utils import unwrap_model

Shard = tuple[str, tuple[int, ...], tuple[slice, ...], np.ndarray]


def local_shards(chunks: Iterable[torch.nn.Module], values: str = "param") -> list[Shard]:
    """This rank's part of every parameter (``param``) or of its gradient (``main_grad``)."""
    shards = []
    for wrapped in chunks:
        chunk = unwrap_model(wrapped)
        sharded = chunk.sharded_state_dict()
        for name, parameter in chunk.named_parameters():
            data = parameter if values == "param" else getattr(parameter, values, None)
            if data is None:  # frozen
                sharded.pop(name)
            else:
                sharded[name].data = data.detach().clone().float()
                if isinstance(sharded[name], ShardedTensor):
                    sharded[name].dtype = torch.float32
        apply_factories(sharded)
        for tensor in nested_values(sharded):
            if isinstance(tensor, ShardedTensor):
                shape = tuple(tensor.global_shape)
                where = tuple(
                    slice(start, start + size)
                    for start, size in zip(
                        tensor.global_offset,
                        (*[1] * tensor.prepend_axis_num, *tensor.local_shape),
                        strict=True,
                    )
                )
                shards.append((tensor.key, shape, where, tensor.data.float().numpy()))
    return shards


def assemble(of_all_ranks: Iterable[list[Shard]]) -> dict[str, torch.Tensor]:
    """Full tensors by global name; asserts that replicas agree to the bit or nearly so."""
    full: dict[str, torch.Tensor] = {}
    for shards in of_all_ranks:
        for key, shape, where, data in shards:
            tensor = full.setdefault(key, torch.full(shape, torch.nan))
            part = tensor[where]
            value = torch.from_numpy(data).view(part.shape)
            seen = ~part.isnan()
            torch.testing.assert_close(part[seen], value[seen], rtol=1e-5, atol=1e-7)
            tensor[where] = value
    assert not any(t.isnan().any() for t in full.values())
    return full
