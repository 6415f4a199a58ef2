"""Where a conversion takes its tensors from: all shapes at once, then the tensors one by one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types a weight can be converted from; others (integers, float8) are quantised, which means nothing without scales."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    shape: Shape
    dtype: torch.dtype


class TensorSource(Protocol):
    """Named tensors that are read when they are needed, so that a model never has to fit into memory."""

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor's shape and type, without reading any."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU. The caller does not change it.

        Raises:
            ValueError: it cannot be read; names the file.
        """
        ...


class RowSource(TensorSource, Protocol):
    """A source of which some rows of a tensor can be read without the others."""

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of one tensor, on the CPU.

        Raises:
            ValueError: they cannot be read; names the file.
        """
        ...


def check_tensors(
    where: str, infos: Mapping[str, TensorInfo], shapes: Mapping[str, Shape], ignored: set[str] | frozenset[str]
) -> None:
    """Compare tensors with the names and shapes that a table expects.

    Args:
        where: what the tensors are of, for the message.
        infos: what is there.
        shapes: what has to be there.
        ignored: names that may be there and are not read.

    Raises:
        ValueError: listing every missing, left-over, misshapen or quantised tensor.
    """
    problems = [f"missing {name}" for name in shapes if name not in infos]
    problems += [f"left over {name}" for name in infos if name not in shapes and name not in ignored]
    for name, shape in shapes.items():
        if name not in infos:
            continue
        info = infos[name]
        if info.shape != shape:
            problems.append(f"{name} has shape {info.shape}, expected {shape}")
        if info.dtype not in WEIGHT_DTYPES:
            problems.append(f"{name} is {info.dtype}; weights are {', '.join(map(str, WEIGHT_DTYPES))}")
    if problems:
        raise ValueError(f"the {where} tensors do not fit the model:\n  " + "\n  ".join(problems))
