"""Hugging Face folders -> a distributed checkpoint, and the configuration that belongs to it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data_pipeline.conversations.chat_templates import TEMPLATE_NAMES
from megatron_focus.checkpoint.state import CONFIG_FILE
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.loading import dump_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.conversion.checkpoint_writer import Piece, write_pieces
from megatron_focus.conversion.from_config import model_facts
from megatron_focus.conversion.import_settings import import_settings
from megatron_focus.conversion.import_sources import ImportSource
from megatron_focus.conversion.initial_values import initial_value
from megatron_focus.conversion.new_folder import new_folder
from megatron_focus.conversion.parameter_table import Entry, hf_shapes, ignored_hf_names, parameter_table
from megatron_focus.conversion.stored_names import stored_name
from megatron_focus.conversion.tensor_layouts import RowBlock
from megatron_focus.conversion.tensor_source import check_tensors

_EMBEDDING = "model.language_model.embed_tokens.weight"
_PIECE_BYTES = 1 << 28
"""Size above which the rows of one tensor are written in several pieces."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was written."""

    config: RunConfig
    parameters: int
    """With the padding of the vocabulary."""
    new_rows: int
    """Rows that the embedding grew by."""
    created: list[str]
    """Tensors that the source lacks."""


def import_model(
    source: ImportSource,
    tokenizer_folder: Path,
    out: Path,
    overrides: list[str],
    *,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Imported:
    """Write ``out/iter_0000000``: the weights, for training under any layout, and ``config.yaml``.

    Args:
        source: the model.
        tokenizer_folder: the tokenizer to train with, see ``tools/prepare_tokenizer.py``.
        out: folder to create; it must not exist.
        overrides: ``section.key=value`` strings, for what the folders leave open (samplers, seed, chat template).
        dtype: type of the weights; each tensor keeps its own if not given.
        progress: show a bar on standard error.

    Raises:
        ValueError: parts, tokenizer and settings do not fit each other; nothing is left behind.
        OSError: the checkpoint cannot be written; nothing is left behind.
    """
    infos = source.tensors.infos()
    if _EMBEDDING not in infos:
        raise ValueError(f"{source.description}: there is no embedding ({_EMBEDDING}) among the tensors")
    rows, stored = source.model.language.vocab_size, dtype or infos[_EMBEDDING].dtype
    all_stored = {dtype or info.dtype for info in infos.values()}
    config, tokenizer = import_settings(source, tokenizer_folder, out, overrides, stored, all_stored)
    try:
        facts = model_facts(config.model, tokenizer, config.data.chat_template)
    except ValueError as error:  # of the tokenizer's own template, unless another was asked for
        raise ValueError(f"{error}; data.chat_template=NAME chooses one of {', '.join(TEMPLATE_NAMES)}") from error
    table = parameter_table(facts, rows)
    created = [entry for entry in table if entry.megatron.startswith(source.created)]
    read = [entry for entry in table if entry not in created]
    check_tensors(source.description, infos, hf_shapes(read), ignored_hf_names(facts))
    pieces = [piece for entry in read for piece in _read_pieces(entry, source, dtype)]
    pieces += [_created_piece(entry, config, stored) for entry in created]
    with new_folder(out, sum(piece.num_bytes for piece in pieces)) as unfinished:
        target = CheckpointStore(unfinished).path(0)
        target.mkdir()
        with _bar(pieces, progress) as bar:
            write_pieces(target, pieces, _depths(table), bar.update)
        (target / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
    return Imported(
        config=config,
        parameters=sum(math.prod(entry.shape) for entry in table),
        new_rows=config.model.language.vocab_size - rows,
        created=[entry.megatron for entry in created],
    )


def _read_pieces(entry: Entry, source: ImportSource, dtype: torch.dtype | None) -> Iterator[Piece]:
    """The row blocks of a tensor that the source has."""
    infos = source.tensors.infos()
    own = {infos[name].dtype for name in entry.hf}
    if len(own) > 1 and dtype is None:
        raise ValueError(f"{', '.join(entry.hf)} have different types ({', '.join(map(str, own))}); give --dtype")
    stored, first = dtype or own.pop(), 0
    step = max(1, _PIECE_BYTES // (math.prod(entry.shape[1:]) * stored.itemsize))
    for block in entry.layout.row_blocks(entry.shape):
        names = [entry.hf[i] for i in block.needs]
        if not block.is_copy:
            yield _piece(entry, stored, partial(_build, block, names, source, stored), first, block.rows)
        for start in range(0, block.rows if block.is_copy else 0, step):
            stop = min(start + step, block.rows)
            copy = partial(_copy, names[0], source, stored, start, stop)
            yield _piece(entry, stored, copy, first + start, stop - start)
        first += block.rows


def _build(block: RowBlock, names: list[str], source: ImportSource, dtype: torch.dtype) -> Tensor:
    return block.build([source.tensors.read(name) for name in names]).to(dtype)


def _copy(name: str, source: ImportSource, dtype: torch.dtype, start: int, stop: int) -> Tensor:
    return source.tensors.read_rows(name, start, stop).to(dtype)


def _created_piece(entry: Entry, config: RunConfig, dtype: torch.dtype) -> Piece:
    """A tensor that the source lacks."""
    draw = partial(initial_value, entry.megatron, entry.shape, config.model, config.training.seed)
    return _piece(entry, dtype, lambda: draw().to(dtype), 0, entry.shape[0])


def _piece(entry: Entry, dtype: torch.dtype, build: Callable[[], Tensor], first_row: int, rows: int) -> Piece:
    return Piece(name=entry.megatron, shape=entry.shape, first_row=first_row, rows=rows, dtype=dtype, build=build)


def _depths(table: list[Entry]) -> dict[str, int]:
    """Layers of each stack."""
    depths: dict[str, int] = {}
    for place in (stored_name(entry.megatron) for entry in table):
        if place.layer is not None:
            depths[place.key] = max(depths.get(place.key, 0), place.layer + 1)
    return depths


def _bar(pieces: list[Piece], show: bool) -> tqdm:
    total = sum(piece.num_bytes for piece in pieces)
    return tqdm(total=total, desc="importing", unit="B", unit_scale=True, disable=not show, smoothing=0.1)
