"""How one Megatron tensor corresponds to one or more Hugging Face tensors.

A layout is a pair of inverse rearrangements; none changes a value. Towards Megatron a tensor is made in row blocks, so
that the largest tensors (embeddings, gated MLPs) are copied without being put together in memory. Shapes: H input size
of a projection.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megatron_focus.conversion.tensor_source import Shape

_MEAN_ROWS = 1024
"""Rows of an embedding that are added up at once, in float64."""


@dataclass(frozen=True)
class RowBlock:
    """Some rows of a Megatron tensor."""

    rows: int
    needs: tuple[int, ...]
    """Which of the Hugging Face tensors they are made of."""
    build: Callable[[Sequence[Tensor]], Tensor]
    """The needed tensors, in that order -> [rows, ...]."""
    is_copy: bool = False
    """They are the rows of one tensor as they are, so any part of them can be made of the same part of it."""


class Layout(Protocol):
    """A rearrangement between one Megatron tensor and its Hugging Face tensors."""

    def hf_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Shapes of the Hugging Face tensors that belong to a Megatron tensor of ``shape``."""
        ...

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Take the Megatron tensor apart."""
        ...

    def row_blocks(self, shape: Shape) -> list[RowBlock]:
        """How to put the Hugging Face tensors together: blocks that, one under another, are the Megatron tensor."""
        ...


def to_megatron(layout: Layout, shape: Shape, tensors: Sequence[Tensor]) -> Tensor:
    """The whole Megatron tensor of ``shape``."""
    blocks = layout.row_blocks(shape)
    return torch.cat([block.build([tensors[i] for i in block.needs]) for block in blocks])


@dataclass(frozen=True)
class Same:
    """One tensor with equal elements; ``hf_shape`` says the other side's shape where it differs."""

    hf_shape: Shape | None = None

    def hf_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """See :class:`Layout`."""
        return (self.hf_shape or shape,)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Layout`."""
        return (tensor.reshape(self.hf_shape or tensor.shape),)

    def row_blocks(self, shape: Shape) -> list[RowBlock]:
        """See :class:`Layout`."""
        return [RowBlock(shape[0], (0,), lambda tensors: tensors[0].reshape(shape), self.hf_shape is None)]


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

    def row_blocks(self, shape: Shape) -> list[RowBlock]:
        """See :class:`Layout`."""
        return [RowBlock(shape[0], (0, 1, 2), self._joined)]

    def _joined(self, tensors: Sequence[Tensor]) -> Tensor:
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

    def row_blocks(self, shape: Shape) -> list[RowBlock]:
        """See :class:`Layout`."""
        return [RowBlock(shape[0] // 2, (part,), lambda tensors: tensors[0], True) for part in (0, 1)]


@dataclass(frozen=True)
class PaddedVocabulary:
    """Rows of the vocabulary: Megatron pads them with zeros so that tensor-parallel ranks divide them evenly.

    A source with fewer rows than ``vocab_size`` gets new ones, each the mean of its own: a new token's logit is then
    the mean logit, so it takes no more of the softmax than an ordinary token, whatever the scale of the weights.
    """

    vocab_size: int
    padded_vocab_size: int
    source_rows: int | None = None
    """Rows of the Hugging Face tensor that is read; ``vocab_size`` if not given."""

    def hf_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """See :class:`Layout`."""
        return ((self.source_rows or self.vocab_size, *shape[1:]),)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Layout`."""
        return (tensor[: self.vocab_size],)

    def row_blocks(self, shape: Shape) -> list[RowBlock]:
        """See :class:`Layout`."""
        source = self.source_rows or self.vocab_size
        new, padding = self.vocab_size - source, self.padded_vocab_size - self.vocab_size
        blocks = [
            RowBlock(source, (0,), lambda tensors: tensors[0], True),
            RowBlock(new, (0,), lambda tensors: _mean_row(tensors[0]).expand(new, -1)),
            RowBlock(padding, (0,), lambda tensors: tensors[0].new_zeros(padding, *shape[1:])),
        ]
        return [block for block in blocks if block.rows > 0]


def _mean_row(rows: Tensor) -> Tensor:
    """Mean of the rows [V, H] -> [1, H]; a float64 copy of all rows at once would be the largest tensor by far."""
    total = torch.zeros(1, rows.shape[1], dtype=torch.float64)
    for start in range(0, len(rows), _MEAN_ROWS):
        total += rows[start : start + _MEAN_ROWS].double().sum(0)
    return (total / len(rows)).to(rows.dtype)
