"""Writing safetensors shards tensor by tensor.

The safetensors library writes a file from tensors that are all in memory; here every header is written first, from the
shapes, and each tensor's bytes go to their place when the tensor comes.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from megatron_focus.conversion.safetensors_folder import INDEX
from megatron_focus.conversion.tensor_source import TensorInfo

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 8
"""The header is padded to a multiple of this, so that mapped tensors are aligned."""


class SafetensorsWriter:
    """Shards and index of the tensors listed in ``infos``; a context manager.

    Args:
        folder: an existing folder.
        infos: every tensor that will be written.
        max_shard_size: such as ``5GB``; a larger tensor gets a file of its own.

    Raises:
        ValueError: ``max_shard_size`` is not a size.
    """

    def __init__(self, folder: Path, infos: Mapping[str, TensorInfo], max_shard_size: str) -> None:
        self._folder, self._infos = folder, infos
        self._split = split_state_dict_into_shards_factory(
            dict(infos),
            get_storage_size=_num_bytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
        self._missing = set(infos)
        self._files: dict[str, BinaryIO] = {}
        self._places: dict[str, int] = {}

    def __enter__(self) -> "SafetensorsWriter":
        for file, names in self._split.filename_to_tensors.items():
            self._begin(file, names)
        if len(self._split.filename_to_tensors) > 1:
            index = {"metadata": self._split.metadata, "weight_map": self._split.tensor_to_filename}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        for file in self._files.values():
            file.close()
        if kind is None and self._missing:
            raise ValueError(f"tensors were never written: {', '.join(sorted(self._missing))}")

    def write(self, name: str, tensor: Tensor) -> int:
        """Put a tensor in its place; returns its bytes.

        Raises:
            ValueError: its shape or type is not the one announced.
            OSError: the file cannot be written.
        """
        info = self._infos[name]
        if tuple(tensor.shape) != info.shape or tensor.dtype != info.dtype:
            raise ValueError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}, announced {info.shape} {info.dtype}")
        file = self._files[self._split.tensor_to_filename[name]]
        file.seek(self._places[name])
        file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        self._missing.discard(name)
        return _num_bytes(info)

    def _begin(self, file: str, names: list[str]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            info = self._infos[name]
            start, end = end, end + _num_bytes(info)
            header[name] = {"dtype": _DTYPES[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
            self._places[name] = start
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        stream = open(self._folder / file, "wb")  # noqa: SIM115 (closed by __exit__)
        self._files[file] = stream
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            self._places[name] += stream.tell()


def _num_bytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * info.dtype.itemsize
