"""Reading a folder of safetensors files tensor by tensor."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_focus.conversion.importable import saving_class
from megatron_focus.conversion.tensor_source import TensorInfo

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsFolder:
    """The tensors of ``model.safetensors``, or of the shards that ``model.safetensors.index.json`` names.

    Opening checks every file's header against its length, so a download that broke off is found before any work.

    Raises:
        ValueError: no safetensors there, an index that names a missing file or tensor, or a truncated file; names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        self._infos: dict[str, TensorInfo] = {}
        wanted = _weight_map(folder)
        for file in dict.fromkeys(wanted.values()) if wanted is not None else [SINGLE]:
            self._add(folder / file)
        if wanted is not None:
            absent = [f"{name} (in {file})" for name, file in wanted.items() if self._files.get(name) != folder / file]
            if absent:
                raise ValueError(f"{folder / INDEX} names tensors that are not in their files: {', '.join(absent)}")

    def infos(self) -> Mapping[str, TensorInfo]:
        """See ``TensorSource``."""
        return self._infos

    def read(self, name: str) -> Tensor:
        """See ``TensorSource``."""
        with self._open(name) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """See ``RowSource``."""
        with self._open(name) as file:
            tensor: Tensor = file.get_slice(name)[start:stop]
        return tensor

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        """The file of a tensor, open for this one tensor: pages that were read would count as this program's memory."""
        try:
            with safe_open(self._files[name], framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self._files[name]}: {name} cannot be read: {error}") from error

    def _add(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{self.folder / INDEX} names {path.name}, which is missing")
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    part = file.get_slice(name)
                    self._files[name] = path
                    self._infos[name] = TensorInfo(tuple(part.get_shape()), _dtype(path, name, part.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Tensor -> file name, from the index; None where one file holds all."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return None
        raise ValueError(_no_weights(folder))
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index with a key 'weight_map' ({error})") from error


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if not pickled:
        return f"{folder} has neither {SINGLE} nor {INDEX}"
    return (
        f"{folder} has its weights in {pickled[0]}, a pickle, which can run code when it is read; if you trust it, "
        f'convert it once: python -c "from transformers import {saving_class(folder)} as M; '
        f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('NEW_FOLDER')\", copy its tokenizer files beside "
        "it, and import NEW_FOLDER"
    )


def _dtype(path: Path, name: str, stored: str) -> torch.dtype:
    if stored not in _DTYPES:
        raise ValueError(f"{path}: {name} has the unknown type {stored}")
    return _DTYPES[stored]
