"""How one Megatron tensor corresponds to one or more Hugging Face tensors.

A layout is a pair of inverse rearrangements; none changes a value. Shapes: H input size of a projection.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Layout(Protocol):
    """A rearrangement between one Megatron tensor and its Hugging Face tensors."""

    def hf_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Shapes of the Hugging Face tensors that belong to a Megatron tensor of ``shape``."""
        ...

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Take the Megatron tensor apart."""
        ...

    def to_megatron(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Put the Hugging Face tensors together."""
        ...


@dataclass(frozen=True)
class Same:
    """One tensor with equal elements; ``hf_shape`` says the other side's shape where it differs."""

    hf_shape: Shape | None = None
    megatron_shape: Shape | None = None

    def hf_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """See :class:`Layout`."""
        return (self.hf_shape or shape,)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Layout`."""
        return (tensor.reshape(self.hf_shape or tensor.shape),)

    def to_megatron(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """See :class:`Layout`."""
        return tensors[0].reshape(self.megatron_shape or tensors[0].shape)


@dataclass(frozen=True)
class GroupedQKV:
    """mcore's ``linear_qkv``: for each query group its query heads, its key head, its value head, one under another.

    Works for the weight [rows, H] and the bias [rows].
    """

    heads: int
    groups: int
    head_dim: int

    @property
    def _heads_of_group(self) -> tuple[int, int, int]:
        return (self.heads // self.groups, 1, 1)

    def hf_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """See :class:`Layout`."""
        return tuple((self.groups * heads * self.head_dim, *shape[1:]) for heads in self._heads_of_group)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Layout`."""
        rest = tensor.shape[1:]
        grouped = tensor.reshape(self.groups, sum(self._heads_of_group), self.head_dim, *rest)
        return tuple(part.reshape(-1, *rest) for part in grouped.split(self._heads_of_group, dim=1))

    def to_megatron(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """See :class:`Layout`."""
        rest = tensors[0].shape[1:]
        grouped = [t.reshape(self.groups, -1, self.head_dim, *rest) for t in tensors]
        return torch.cat(grouped, dim=1).reshape(-1, *rest)


@dataclass(frozen=True)
class GateUp:
    """mcore's ``linear_fc1`` of a gated MLP: gate rows above up rows."""

    def hf_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """See :class:`Layout`."""
        return ((shape[0] // 2, *shape[1:]),) * 2

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Layout`."""
        return tensor.chunk(2, dim=0)

    def to_megatron(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """See :class:`Layout`."""
        return torch.cat(tensors, dim=0)


@dataclass(frozen=True)
class PaddedVocabulary:
    """Rows of the vocabulary: Megatron pads them with zeros so that tensor-parallel ranks divide them evenly."""

    vocab_size: int
    padded_vocab_size: int

    def hf_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """See :class:`Layout`."""
        return ((self.vocab_size, *shape[1:]),)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Layout`."""
        return (tensor[: self.vocab_size],)

    def to_megatron(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """See :class:`Layout`."""
        (rows,) = tensors
        padding = rows.new_zeros(self.padded_vocab_size - self.vocab_size, *rows.shape[1:])
        return torch.cat([rows, padding], dim=0)
