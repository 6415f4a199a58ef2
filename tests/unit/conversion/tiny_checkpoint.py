"""Small distributed checkpoints, written without a process group."""

from pathlib import Path

from torch import Tensor

from megatron_focus.conversion.checkpoint_writer import Piece, write_pieces
from megatron_focus.conversion.stored_names import stored_name


def pieces_of(state: dict[str, Tensor], rows: int = 1000) -> list[Piece]:
    """Each tensor in pieces of so many rows."""
    pieces = []
    for name, tensor in state.items():
        for start, part in zip(range(0, len(tensor), rows), tensor.split(rows), strict=True):
            size = {"shape": tuple(tensor.shape), "first_row": start, "rows": len(part), "dtype": tensor.dtype}
            pieces.append(Piece(name=name, build=lambda part=part: part, **size))
    return pieces


def write_state(folder: Path, state: dict[str, Tensor], rows: int = 1000) -> int:
    """A checkpoint of a model with ``tiny_facts``; returns the bytes of its tensors."""
    depths = {stored_name(name).key: 4 if name.startswith("decoder") else 2 for name in state if "layers" in name}
    taken: list[int] = []
    write_pieces(folder, pieces_of(state, rows), depths, taken.append)
    return sum(taken)
