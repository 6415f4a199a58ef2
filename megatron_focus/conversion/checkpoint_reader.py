"""Whole tensors of a distributed checkpoint, whatever the layout it was written at, one at a time.

PyTorch's own reader assembles them, so neither Megatron nor a process group is needed. It does not notice a changed
byte, so a file that has a checksum is read whole before the first tensor is taken from it. For a large model that is a
long second reading, of the optimizer's state as well; a wrong weight in a release, which nobody would find, costs more.
"""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, LoadPlan, Metadata, ReadItem
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_focus.checkpoint.checksums import CheckedFiles
from megatron_focus.conversion.stored_names import stored_name, table_names
from megatron_focus.conversion.tensor_source import TensorInfo

_OPTIMIZER = "optimizer."
_TENSORS = ".distcp"


class CheckpointTensors:
    """The model's weights in a complete checkpoint (``iter_0000500``), by the parameter table's names.

    The files that hold no tensors, the configuration among them, are compared with their checksums here.

    Raises:
        ValueError: the folder is not a complete checkpoint, or one of those files is damaged.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / ".metadata").is_file():
            raise ValueError(f"{folder} is not a complete checkpoint: it has no .metadata")
        self.folder = folder
        self._files = CheckedFiles(folder)
        self._files.check(name for name in self._files.names() if not name.endswith(_TENSORS))
        self._reader = FileSystemReader(folder)
        try:
            self._metadata = self._reader.read_metadata()
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
            raise ValueError(f"{folder / '.metadata'} is damaged: {error}") from error
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self._infos = dict(self._list())

    def infos(self) -> Mapping[str, TensorInfo]:
        """See ``TensorSource``."""
        return self._infos

    def read(self, name: str) -> Tensor:
        """See ``TensorSource``. Takes the tensor's size, and that of its largest stored piece if there are several.

        Raises:
            ValueError: the tensor cannot be read, or a file that it lies in is not what was written.
        """
        place, info = stored_name(name), self._infos[name]
        start, size = [0] * len(info.shape), list(info.shape)
        if place.layer is not None:
            start, size = [place.layer, *start], [1, *size]
        box = ChunkStorageMetadata(offsets=torch.Size(start), sizes=torch.Size(size))
        planner = _OneBox(place.key, box, info.dtype)
        planner.set_up_planner({}, self._metadata, is_coordinator=True)
        plan = planner.create_local_plan()
        covered, wanted = sum(math.prod(item.lengths) for item in plan.items), math.prod(size)
        if covered != wanted:
            raise ValueError(f"{self.folder}: {place.key} is incomplete: {covered} of {wanted} elements are stored")
        self._files.check(self._metadata.storage_data[item.storage_index].relative_path for item in plan.items)
        try:
            self._reader.read_data(plan, planner).wait()
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.folder}: {place.key} cannot be read: {error}") from error
        return planner.tensor().reshape(info.shape)

    def _list(self) -> list[tuple[str, TensorInfo]]:
        found = []
        for key, stored in self._metadata.state_dict_metadata.items():
            if not isinstance(stored, TensorStorageMetadata) or key.startswith(_OPTIMIZER):
                continue
            shape, dtype = tuple(stored.size), stored.properties.dtype
            names = table_names(key, shape[0] if shape else 0)
            if names is None:
                found.append((key, TensorInfo(shape, dtype)))
            else:
                found += [(name, TensorInfo(shape[1:], dtype)) for name in names]
        return found


class _Taken:
    """Stands for a target that a stored piece fills completely: keeps the piece instead of copying it."""

    def __init__(self, size: torch.Size) -> None:
        self._size = size
        self.tensor: Tensor | None = None

    def detach(self) -> "_Taken":
        """Itself: there is no graph."""
        return self

    def size(self) -> torch.Size:
        """Of the target."""
        return self._size

    def copy_(self, tensor: Tensor) -> None:
        """Take the piece."""
        self.tensor = tensor


class _OneBox(DefaultLoadPlanner):
    """Reads one box of one stored tensor."""

    def __init__(self, key: str, box: ChunkStorageMetadata, dtype: torch.dtype) -> None:
        super().__init__(flatten_state_dict=False)
        self._key, self._box, self._dtype = key, box, dtype
        self._target: Tensor | _Taken = _Taken(box.sizes)

    def create_local_plan(self) -> LoadPlan:
        """The stored pieces that overlap the box."""
        assert isinstance(self.metadata, Metadata)
        stored = self.metadata.state_dict_metadata[self._key]
        assert isinstance(stored, TensorStorageMetadata)
        plan = LoadPlan(create_read_items_for_chunk_list(self._key, stored, [self._box]))
        if len(plan.items) > 1:
            self._target = torch.empty(self._box.sizes, dtype=self._dtype)
        return plan

    def resolve_tensor(self, read_item: ReadItem) -> Any:
        """The part of the target that one piece fills."""
        part = self._target
        if isinstance(part, _Taken):
            return part
        for dim, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            part = part.narrow(dim, offset, length)
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing: the part is in its place."""

    def tensor(self) -> Tensor:
        """The box, once it was read."""
        tensor = self._target.tensor if isinstance(self._target, _Taken) else self._target
        assert tensor is not None
        return tensor


def read_model(folder: Path) -> dict[str, Tensor]:
    """All of the model's weights at once, by the table's names.

    Raises:
        ValueError: the folder is not a complete checkpoint.
    """
    source = CheckpointTensors(folder)
    return {name: source.read(name) for name in source.infos()}
