"""What the tensor-parallel ranks of a row tell each other about the choice of tokens.

Lengths of everything downstream follow from the choice, so ranks that choose differently, and be it for a rounding
difference, wait for each other for ever. Nothing is sent where there is one rank, and nothing waits for the device.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp


def max_over(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Elementwise maximum over the ranks of the group."""
    if group.size() > 1:
        tensor = tensor.contiguous()
        torch.distributed.all_reduce(tensor, op=ReduceOp.MAX, group=group)
    return tensor


def of_first_rank(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """The tensor of the group's first rank, on all of them. Shape and type must be the same already."""
    if group.size() > 1:
        tensor = tensor.contiguous()
        torch.distributed.broadcast(tensor, group=group, group_src=0)
    return tensor
