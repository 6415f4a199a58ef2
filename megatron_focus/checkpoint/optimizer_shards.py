"""The distributed optimizer's state as pieces of global tensors: each rank stores what it updates, and nothing else.

Megatron's own resharding form gathers the state of a whole model shard on one rank. Here nothing is gathered or copied:
a rank's part of a parameter is a range of the flattened parameter, which is a few boxes of it, and ``torch``'s format
stores boxes of any size. Names and shapes of the stored tensors are those of Megatron's form, ``fully_reshardable``, so
what was written in that form is loaded as well.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

_STATES = ("exp_avg", "exp_avg_sq")
Box = tuple[tuple[int, ...], tuple[int, ...]]
"""(offset, size)."""


def optimizer_shards(optimizer: DistributedOptimizer, model: dict[str, Any]) -> dict[str, ShardedTensor]:
    """This rank's main parameters and moments, under names of their own; the data are views of the optimizer's tensors.

    Args:
        optimizer: allocates its moments, if it has taken no step yet.
        model: sharded state of the model, whose values are its parameters.
    """
    optimizer.init_state_fn(optimizer.optimizer, optimizer.config)
    placed = {sharded.data: sharded for sharded in nested_values(model)}
    shards = {}
    for parameter, start, tensors in _owned(optimizer):
        for whole, first in _parts(placed[parameter]):
            begin = max(start, first)
            end = min(start + len(tensors["param"]), first + math.prod(whole.local_shape))
            for offset, size in boxes(whole.local_shape, begin - first, end - first):
                for state, tensor in tensors.items():
                    data = tensor[begin - start : begin - start + math.prod(size)]
                    shard = _shard(f"optimizer.state.{state}.{whole.key}", whole, offset, size, data)
                    shards[f"{shard.key} {shard.global_offset}"] = shard
                begin += math.prod(size)
    return shards


def plain_groups(optimizer: DistributedOptimizer) -> list[dict[str, Any]]:
    """Its parameter groups without parameters, equal on all ranks: Transformer Engine counts no steps of empty ones."""
    groups = optimizer.optimizer.param_groups
    steps = [group["step"] for group in groups if "step" in group]
    common = {"step": max(steps)} if steps else {}
    return [{key: value for key, value in group.items() if key != "params"} | common for group in groups]


def load_step(optimizer: DistributedOptimizer, saved: list[dict[str, Any]]) -> None:
    """Take over the count of steps; all else in a group follows from the configuration and the schedule."""
    if "step" in saved[0]:
        for group in optimizer.optimizer.param_groups:
            group["step"] = saved[0]["step"]


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Elements ``start`` to ``stop`` of a flattened tensor as boxes of the tensor, in order; none if there are none.

    A tensor of n dimensions takes at most 2 n - 1 of them: whole rows, and a part of a row before and behind them.
    """
    if start >= stop:
        return
    if len(shape) < 2:
        yield ((start,), (stop - start,)) if shape else ((), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:
        yield from _inside(shape, last, start - last * row, stop - last * row)
        return
    yield from _inside(shape, first - 1, row - (first * row - start), row)
    if first < last:
        yield (first, *[0] * (len(shape) - 1)), (last - first, *shape[1:])
    yield from _inside(shape, last, 0, stop - last * row)


def _inside(shape: tuple[int, ...], row: int, start: int, stop: int) -> Iterator[Box]:
    for offset, size in boxes(shape[1:], start, stop):
        yield (row, *offset), (1, *size)


def _owned(optimizer: DistributedOptimizer) -> Iterator[tuple[torch.nn.Parameter, int, dict[str, Tensor]]]:
    """Each parameter that this rank updates a part of, where the part starts in it, and the part's tensors, flat."""
    inner = optimizer.optimizer
    for buckets in (bucket for of_dtype in optimizer.gbuf_ranges for bucket in of_dtype.values()):
        for parameter, ranges in (item for bucket in buckets for item in bucket["param_map"].items()):
            group, place = optimizer.model_param_group_index_map[parameter]
            main = inner.param_groups[group]["params"][place]
            yield (
                parameter,
                ranges["param"].start,
                {
                    "param": main.detach(),
                    **{name: inner.state[main][name] for name in _STATES},
                },
            )


def _parts(sharded: ShardedTensor | ShardedTensorFactory) -> Iterator[tuple[ShardedTensor, int]]:
    """What a parameter is stored as (the halves of a gated layer are two), and where each starts in it, flattened."""
    if isinstance(sharded, ShardedTensor):
        yield sharded, 0
        return
    for part in nested_values(sharded.build()):
        assert part.data.is_contiguous()
        yield part, part.data.storage_offset() - sharded.data.storage_offset()


def _shard(
    key: str, whole: ShardedTensor, offset: tuple[int, ...], size: tuple[int, ...], data: Tensor
) -> ShardedTensor:
    """A box of one rank's ``whole``, which others share by tensor and pipeline parallelism, but not by data."""
    stacked = whole.prepend_axis_num
    inside = (start + moved for start, moved in zip(whole.global_offset[stacked:], offset, strict=True))
    data = data.view((1,) * stacked + size)
    return ShardedTensor(
        key=key,
        data=data,
        dtype=data.dtype,
        local_shape=tuple(data.shape),
        global_shape=whole.global_shape,
        global_offset=(*whole.global_offset[:stacked], *inside),
        axis_fragmentations=None,
        replica_id=(*whole.replica_id[:2], 0),
    )
