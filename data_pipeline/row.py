"""The packed row: one microbatch, several samples back to back.

Shapes: S samples, N text tokens, I images, t tiles, P tile side in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from data_pipeline.config import ImageGeometry

IGNORE_INDEX = -100
"""Label of a position that carries no loss."""


_FILLER = "(filler)"


@dataclass(kw_only=True)
class PackedRow:
    """Several samples in one row, before the images take their place in the sequence.

    Each image is ONE image-placeholder token in ``tokens``; the model replaces it by the image's visual tokens. Images
    and tiles stand in the order of their placeholders.
    """

    tokens: Tensor
    """int64 [N], token ids."""
    labels: Tensor
    """int64 [N], the id to predict after each token, ``IGNORE_INDEX`` where there is none."""
    user_turn: Tensor
    """int64 [N], for what users wrote after the last image of their sample the number of the turn, which is the number
    of answers before it; -1 elsewhere. The queries of Eq. 6 are one of these turns."""
    cu_seqlens: Tensor
    """int32 [S + 1], where each sample begins in ``tokens``."""
    tiles: Tensor
    """uint8 [t, 3, P, P], for each image its global view first, then its tiles in row order; not normalised."""
    grids: Tensor
    """int32 [I, 2], rows and columns of local tiles of each image."""
    image_sizes: Tensor
    """int32 [I, 2], height and width of the original image in pixels."""
    sample_keys: Tensor
    """int64 [S], a stable hash of each sample's id, from which its random draws are made."""
    sample_ids: list[str]
    """The ids themselves, for messages."""

    @property
    def num_samples(self) -> int:
        """S."""
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> list[int]:
        """Text tokens of each sample, on the host."""
        return self.cu_seqlens.diff().tolist()

    @property
    def is_filler(self) -> bool:
        """Whether this is what ``empty_row`` makes."""
        return self.sample_ids == [_FILLER]

    @property
    def loss_tokens(self) -> int:
        """Number of positions with a label."""
        return int((self.labels != IGNORE_INDEX).sum())

    def tensors(self) -> dict[str, Tensor]:
        """The tensor fields by name, in declaration order."""
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    def to(self, device: torch.device | str) -> "PackedRow":
        """A copy with every tensor on ``device``."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        return PackedRow(**moved, sample_ids=self.sample_ids)

    def pin_memory(self) -> "PackedRow":
        """A copy in page-locked host memory."""
        pinned = {name: tensor.pin_memory() for name, tensor in self.tensors().items()}
        return PackedRow(**pinned, sample_ids=self.sample_ids)


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """One sample as it goes into a row; the tensors are those of ``PackedRow`` for this sample alone."""

    id: str
    key: int
    tokens: Tensor
    labels: Tensor
    user_turn: Tensor
    tiles: list[Tensor]
    """For each image, uint8 [1 + rows * cols, 3, P, P]."""
    grids: list[tuple[int, int]]
    image_sizes: list[tuple[int, int]]


def make_row(samples: Sequence[EncodedSample], geometry: ImageGeometry) -> PackedRow:
    """Put samples back to back."""
    assert samples, "a row without samples is made by empty_row"
    lengths = torch.tensor([0, *(len(sample.tokens) for sample in samples)])
    tiles = [image for sample in samples for image in sample.tiles]
    return PackedRow(
        tokens=torch.cat([sample.tokens for sample in samples]),
        labels=torch.cat([sample.labels for sample in samples]),
        user_turn=torch.cat([sample.user_turn for sample in samples]),
        cu_seqlens=lengths.cumsum(0).to(torch.int32),
        tiles=torch.cat(tiles) if tiles else _no_tiles(geometry),
        grids=_pairs([grid for sample in samples for grid in sample.grids]),
        image_sizes=_pairs([size for sample in samples for size in sample.image_sizes]),
        sample_keys=torch.tensor([sample.key for sample in samples], dtype=torch.int64),
        sample_ids=[sample.id for sample in samples],
    )


def empty_row(pad_token_id: int, geometry: ImageGeometry) -> PackedRow:
    """A row of one pad token without loss or image, for a data-parallel rank that has no row in a step.

    It runs the same layers and collectives as any row and adds nothing to the loss.
    """
    return PackedRow(
        tokens=torch.tensor([pad_token_id], dtype=torch.int64),
        labels=torch.tensor([IGNORE_INDEX], dtype=torch.int64),
        user_turn=torch.tensor([-1], dtype=torch.int64),
        cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
        tiles=_no_tiles(geometry),
        grids=torch.empty(0, 2, dtype=torch.int32),
        image_sizes=torch.empty(0, 2, dtype=torch.int32),
        sample_keys=torch.zeros(1, dtype=torch.int64),
        sample_ids=[_FILLER],
    )


def _no_tiles(geometry: ImageGeometry) -> Tensor:
    return torch.empty(0, 3, geometry.tile_size, geometry.tile_size, dtype=torch.uint8)


def _pairs(values: list[tuple[int, int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32).view(-1, 2)
