"""Writing a distributed checkpoint piece by piece.

PyTorch's planner is asked for each piece only when its file is written, so no more than one of them is in memory. Every
piece gets a file of its own: PyTorch's writer keeps the tensors of a file until the file is closed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from megatron_focus.conversion.stored_names import stored_name
from megatron_focus.conversion.tensor_source import Shape


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some rows of one tensor of the parameter table."""

    name: str
    """The table's name."""
    shape: Shape
    """Of the whole tensor."""
    first_row: int
    rows: int
    dtype: torch.dtype
    build: Callable[[], Tensor]
    """Gives [rows, ...]."""

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return math.prod((self.rows, *self.shape[1:])) * self.dtype.itemsize


class CheckpointWriteError(OSError):
    """The checkpoint could not be written."""


def write_pieces(
    folder: Path, pieces: Sequence[Piece], depths: dict[str, int], written: Callable[[int], object]
) -> None:
    """Write a checkpoint of weights that Megatron's ``dist_checkpointing`` loads under any layout.

    Args:
        folder: an existing, empty folder.
        pieces: all of the model; together they cover every tensor once.
        depths: layers of each stack, by stored key.
        written: called with the bytes of each piece as it is taken.

    Raises:
        CheckpointWriteError: a file could not be written; the reason follows (no space, a limit, permissions).
        ValueError: a piece could not be read, or does not have the shape or type that it should.
    """
    planner = _PiecePlanner(pieces, depths, written)
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=False)
    try:
        dcp.save({}, storage_writer=writer, planner=planner, no_dist=True)
    except CheckpointException as error:
        if planner.error is not None:
            raise planner.error from error
        causes = [_reason(wrapped[0] if isinstance(wrapped, tuple) else wrapped) for wrapped in error.failures.values()]
        raise CheckpointWriteError(f"{folder} cannot be written: {'; '.join(causes)}") from error
    save_config(CheckpointingConfig(sharded_backend="torch_dist"), str(folder))
    torch.save({}, folder / COMMON_STATE_FNAME)  # Megatron's place for plain values; weights have none


def _reason(error: BaseException) -> str:
    """The operating system's reason: PyTorch's serialiser replaces it by one about positions in a file."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return str(found or error)


class _PiecePlanner(dcp.DefaultSavePlanner):
    """Names the pieces in the plan and builds each when the writer asks for it."""

    def __init__(self, pieces: Sequence[Piece], depths: dict[str, int], written: Callable[[int], object]) -> None:
        super().__init__(flatten_state_dict=False)
        self._items = {item.index: (item, piece) for piece in pieces for item in [_write_item(piece, depths)]}
        self._written = written
        self.error: Exception | None = None

    def create_local_plan(self) -> SavePlan:
        """All pieces; there is one rank."""
        self.plan = SavePlan([item for item, _ in self._items.values()])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The piece [1, rows, ...] or [rows, ...]."""
        item, piece = self._items[write_item.index]
        try:
            tensor = piece.build()
            expected = (piece.rows, *piece.shape[1:])
            if tuple(tensor.shape) != expected or tensor.dtype != piece.dtype:
                raise ValueError(
                    f"{piece.name}: got {tuple(tensor.shape)} {tensor.dtype}, expected {expected} {piece.dtype}"
                )
        except Exception as error:
            self.error = error  # PyTorch hands on its text alone
            raise
        self._written(piece.num_bytes)
        assert item.tensor_data is not None
        return tensor.reshape(item.tensor_data.chunk.sizes)


def _write_item(piece: Piece, depths: dict[str, int]) -> WriteItem:
    place = stored_name(piece.name)
    start, sizes, whole = [piece.first_row], [piece.rows, *piece.shape[1:]], list(piece.shape)
    start += [0] * (len(sizes) - 1)
    if place.layer is not None:
        start, sizes, whole = [place.layer, *start], [1, *sizes], [depths[place.key], *whole]
    offsets = torch.Size(start)
    return WriteItem(
        index=MetadataIndex(place.key, offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=offsets, sizes=torch.Size(sizes)),
            properties=TensorProperties(dtype=piece.dtype),
            size=torch.Size(whole),
        ),
    )
