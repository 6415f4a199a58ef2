"""The files and folders that a configuration names: readable, complete, writable, with room for a checkpoint."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch.distributed.checkpoint import FileSystemReader

from data_pipeline.conversations.tokenizer import load_tokenizer, tokenizer_hash
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.storage import Storage
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.schema import RunConfig
from megatron_focus.conversion.from_config import model_facts
from megatron_focus.diagnosis.finding import Finding
from megatron_focus.diagnosis.machine import GIB, NO_ROOM, NoRoomError, existing_part, free_bytes, size
from megatron_focus.diagnosis.state_size import checkpoint_bytes, frozen_count, parameter_count

_LASTING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What stays so until somebody changes it. Other failures of storage may pass."""


@dataclass
class RunFiles:
    """What was found of a run's files."""

    identity: dict[str, str] = field(default_factory=dict)
    """Key -> short hash of what lies there, to be compared between machines."""
    described: dict[str, str] = field(default_factory=dict)
    """Key -> one line for people."""
    findings: list[Finding] = field(default_factory=list)
    parameters: int | None = None
    """Of the model; None where the tokenizer, which decides the vocabulary, cannot be read."""
    frozen: int = 0
    """Of these, those that are not trained."""


def inspect_run_files(config: RunConfig, *, count_parameters: bool) -> RunFiles:
    """Look at everything that a run of ``config`` reads and writes.

    Args:
        config: the configuration.
        count_parameters: the model's sizes were found to fit together.
    """
    files = RunFiles()
    checks: dict[str, Callable[[RunConfig, RunFiles], None]] = {
        "data.tokenizer": _tokenizer,
        **({"model": _parameters} if count_parameters else {}),
        "data.path": _data,
        "checkpoint.pretrained": _pretrained,
        "checkpoint.save": _save,
        "logging.tensorboard_dir": _tensorboard,
        "data.cache_dir": _cache,
    }
    for key, check in checks.items():
        try:
            check(config, files)
        except (ValueError, *_LASTING, ImportError) as error:  # a URL's protocol may need a package that is missing
            files.findings.append(Finding(about=key, message=str(error)))
        except OSError as error:
            files.findings.append(Finding(about=key, message=str(error), may_pass=True))
    return files


def _parameters(config: RunConfig, files: RunFiles) -> None:
    if "data.tokenizer" in files.identity:
        tokenizer = load_tokenizer(str(config.data.tokenizer))
        facts = model_facts(config.model, tokenizer, config.data.chat_template)
        files.parameters, files.frozen = parameter_count(facts), frozen_count(facts, config.optimizer.freeze)


def _tokenizer(config: RunConfig, files: RunFiles) -> None:
    folder, rows = config.data.tokenizer, config.model.language.vocab_size
    if folder is None:
        raise ValueError("is not set: name a folder that tools/prepare_tokenizer.py wrote")
    tokenizer = load_tokenizer(folder)
    files.identity["data.tokenizer"] = tokenizer_hash(tokenizer)[:12]
    files.described["data.tokenizer"] = f"{folder}, {len(tokenizer):,} tokens"
    if len(tokenizer) > rows:
        raise ValueError(f"tokenizer {folder} has {len(tokenizer)} tokens, more than model.language.vocab_size={rows}")


def _data(config: RunConfig, files: RunFiles) -> None:
    path = config.data.path
    if path is None:
        raise ValueError("is not set: name a data set that tools/prepare_data.py wrote")
    manifest = Manifest.load(path)
    files.identity["data.path"] = manifest.hash[:12]
    files.described["data.path"] = f"{path}, {len(manifest):,} samples in {len(manifest.info['shard_bytes']):,} shards"
    storage, sizes = Storage(manifest.shard_folder), manifest.info["shard_bytes"]
    # Far shards cost a request each: the first and the last stand for all.
    names = sorted(sizes) if storage.is_local else sorted({min(sizes), max(sizes)})
    for name in names:
        try:
            found = storage.size(name)
        except OSError as error:
            kind = ValueError if isinstance(error, _LASTING) else OSError
            raise kind(f"{storage.place(name)}: cannot be read ({error})") from error
        if found != sizes[name]:
            raise ValueError(f"{storage.place(name)}: {found:,} bytes, but dataset.json says {sizes[name]:,}")


def _pretrained(config: RunConfig, files: RunFiles) -> None:
    if config.checkpoint.pretrained is None:
        return
    if config.checkpoint.save is not None and (newest := CheckpointStore(config.checkpoint.save).latest()) is not None:
        _unread_pretrained(config.checkpoint.pretrained, newest, files)
        return
    folder, total = _pretrained_size(config.checkpoint.pretrained)
    files.identity["checkpoint.pretrained"] = hashlib.sha256((folder / ".metadata").read_bytes()).hexdigest()[:12]
    files.described["checkpoint.pretrained"] = f"{folder}, {size(total)}"


def _unread_pretrained(pretrained: str, newest: Path, files: RunFiles) -> None:
    """A run that goes on from a checkpoint of its own does not read the weights that it once began with."""
    unread = f"not read: the run continues from {newest}"
    try:
        folder, _ = _pretrained_size(pretrained)
    except (ValueError, OSError) as error:
        files.findings.append(Finding(about="checkpoint.pretrained", message=f"{error}; {unread}", is_problem=False))
        return
    files.described["checkpoint.pretrained"] = f"{folder}, {unread}"


def _pretrained_size(pretrained: str) -> tuple[Path, int]:
    """Folder and bytes of the weights that a run begins with."""
    folder = CheckpointStore(pretrained).latest() or Path(pretrained)
    return folder, _complete_size(folder)


def _complete_size(folder: Path) -> int:
    """Bytes of a distributed checkpoint, all of whose files are as long as its index says."""
    if not (folder / ".metadata").is_file():
        raise ValueError(f"{folder} is not a complete checkpoint: it has no .metadata")
    try:
        stored = FileSystemReader(folder).read_metadata().storage_data
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{folder / '.metadata'} is damaged: {error}") from error
    ends: dict[str, int] = {}
    for place in stored.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in ends.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not complete: {name} is missing")
        if (found := (folder / name).stat().st_size) < end:
            raise ValueError(f"{folder / name} is cut off: {found:,} of {end:,} bytes")
        with (folder / name).open("rb") as file:
            file.read(1)  # a file that may not be read has a size as well
    return sum(ends.values())


def _save(config: RunConfig, files: RunFiles) -> None:
    folder = config.checkpoint.save
    if folder is None:
        message = "is not set: the run will write no checkpoint"
        files.findings.append(Finding(about="checkpoint.save", message=message, is_problem=False))
        return
    try:
        _check_writable(folder)
        _check_room(config, folder, files)
    except NoRoomError as error:
        # A run under way goes on, and saves once there is room again.
        if (newest := CheckpointStore(folder).latest()) is None:
            raise
        message = f"{error}; the run continues from {newest}"
        files.findings.append(Finding(about="checkpoint.save", message=message, is_problem=False))


def _check_room(config: RunConfig, folder: str, files: RunFiles) -> None:
    free = free_bytes(folder)
    files.described["checkpoint.save"] = f"{folder}, {size(free)} free"
    if files.parameters is None:
        return
    one = checkpoint_bytes(files.parameters, files.frozen, config.training.precision)
    files.described["checkpoint.save"] += f", a checkpoint takes up to {size(one)}"
    if free < one:
        raise NoRoomError(f"{folder}: {size(free)} free, one checkpoint takes up to {size(one)}")
    # The newest is complete before the oldest goes, so there is one more for a while.
    if config.checkpoint.keep_last and free < (config.checkpoint.keep_last + 1) * one:
        files.findings.append(
            Finding(
                about="checkpoint.save",
                message=f"{folder}: {size(free)} free; checkpoint.keep_last={config.checkpoint.keep_last} "
                f"takes up to {size((config.checkpoint.keep_last + 1) * one)}, less what is there already",
                is_problem=False,
            )
        )


def _tensorboard(config: RunConfig, files: RunFiles) -> None:
    if config.logging.tensorboard_dir is None:
        return
    try:
        _check_writable(config.logging.tensorboard_dir)
    except NoRoomError as error:
        message = f"{error}; the run goes on without some of its events"
        files.findings.append(Finding(about="logging.tensorboard_dir", message=message, is_problem=False))


def _cache(config: RunConfig, files: RunFiles) -> None:
    folder, wanted = config.data.cache_dir, config.data.cache_gib
    if folder is None:
        return
    _check_writable(folder)
    free = free_bytes(folder)
    files.described["data.cache_dir"] = f"{folder}, {size(free)} free"
    if wanted is not None and free < wanted * GIB:
        message = f"{folder}: {size(free)} free, data.cache_gib={wanted}"
        files.findings.append(Finding(about="data.cache_dir", message=message, is_problem=False))


def _check_writable(folder: str) -> None:
    """Write and remove a file in the folder, or where it will be made; nothing stays."""
    existing = existing_part(folder)
    if not existing.is_dir():
        raise ValueError(f"{folder} cannot be a folder: {existing} is a file")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        kind = NoRoomError if error.errno in NO_ROOM else ValueError if isinstance(error, _LASTING) else OSError
        raise kind(f"{existing} cannot be written ({error.strerror})") from error
