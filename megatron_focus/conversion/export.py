"""Writing a Hugging Face folder from the tensors of a distributed checkpoint, one at a time."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import megatron_focus.release
from megatron_focus.conversion.formats import FORMATS, MAX_SHARD_SIZE
from megatron_focus.conversion.hf_names import llava_next_name
from megatron_focus.conversion.model_card import CardFacts, model_card
from megatron_focus.conversion.model_facts import ModelFacts
from megatron_focus.conversion.new_folder import new_folder
from megatron_focus.conversion.parameter_table import Entry, parameter_table, unused_vision_tensors
from megatron_focus.conversion.release_config import generation_config, llava_next_config, release_config
from megatron_focus.conversion.release_processor import release_processor
from megatron_focus.conversion.safetensors_writer import SafetensorsWriter
from megatron_focus.conversion.tensor_source import TensorInfo, TensorSource, check_tensors
from megatron_focus.conversion.transformers_4 import adapt_processor, llava_next_json

_EMBEDDING = "embedding.word_embeddings.weight"


def write_release(
    source: TensorSource,
    facts: ModelFacts,
    tokenizer_folder: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    layout: str = "focus-llava",
    dtype: torch.dtype | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
    card: CardFacts | None = None,
    progress: bool = False,
) -> int:
    """Write weights, configuration, code, processor, generation defaults and model card.

    The folder is written under another name beside its place and renamed when it is whole, so an interrupted export
    leaves no folder that looks like a release.

    Args:
        source: the Megatron tensors, by the names of ``parameter_table``.
        facts: the model's dimensions, samplers and ids.
        tokenizer_folder: a Hugging Face tokenizer with ``<image>`` and a pad token.
        out_dir: folder to create; it must not exist.
        layout: one of ``FORMATS``; ``llava-next`` is for transformers' own class (4.57 and 5), and needs both samplers
            off.
        dtype: type of the weights in the release; each keeps the type it is stored in if not given.
        max_shard_size: largest weight file, such as ``5GB``.
        card: what the model card says beside the model's own facts.
        progress: show a bar on standard error.

    Returns:
        number of parameters that were converted.

    Raises:
        ValueError: ``out_dir`` exists, the samplers do not suit the layout, the tokenizer does not fit the model, a
            tensor cannot be read, or listing the tensors that do not fit.
        OSError: the folder cannot be written; nothing is left behind.
    """
    if layout not in FORMATS:
        raise ValueError(f"unknown format {layout!r}; choose one of {', '.join(FORMATS)}")
    table, stock = parameter_table(facts), layout == "llava-next"
    check_tensors("Megatron", source.infos(), {entry.megatron: entry.shape for entry in table}, frozenset())
    main_dtype = dtype or source.infos()[_EMBEDDING].dtype
    config = llava_next_config(facts, main_dtype) if stock else release_config(facts, main_dtype)
    processor = release_processor(Path(tokenizer_folder), facts)
    # Filler is of the tower's type, so that the tower keeps one type.
    filler_dtype = dtype or source.infos()["vision_tower.conv1.weight"].dtype
    filler = {name: tensor.to(filler_dtype) for name, tensor in unused_vision_tensors(facts.vision).items()}
    infos = {name: info for entry in table for name, info in _hf_infos(entry, source, dtype)}
    infos |= {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in filler.items()}
    rename = llava_next_name if stock else str
    infos = {rename(name): info for name, info in infos.items()}
    readme = model_card(facts, card or CardFacts(), stock=stock)

    num_bytes = sum(math.prod(info.shape) * info.dtype.itemsize for info in infos.values())
    bar = tqdm(total=num_bytes, desc="exporting", unit="B", unit_scale=True, disable=not progress, smoothing=0.1)
    with new_folder(Path(out_dir), num_bytes) as folder, bar:
        with SafetensorsWriter(folder, infos, max_shard_size) as writer:
            for name, tensor in _hf_tensors(table, source):
                bar.update(writer.write(rename(name), tensor.to(infos[rename(name)].dtype)))
            for name, tensor in filler.items():
                bar.update(writer.write(rename(name), tensor))
        content = llava_next_json(config) if stock else config.to_json_string()
        (folder / "config.json").write_text(content, encoding="utf-8")
        if not stock:
            _copy_code(folder)
        processor.save_pretrained(folder)
        if stock:
            adapt_processor(folder)
        generation_config(facts).save_pretrained(folder)
        (folder / "README.md").write_text(readme, encoding="utf-8")
    return sum(math.prod(entry.shape) for entry in table)


def _hf_infos(entry: Entry, source: TensorSource, dtype: torch.dtype | None) -> list[tuple[str, TensorInfo]]:
    stored = dtype or source.infos()[entry.megatron].dtype
    shapes = entry.layout.hf_shapes(entry.shape)
    return [(name, TensorInfo(shape, stored)) for name, shape in zip(entry.hf, shapes, strict=True)]


def _hf_tensors(table: list[Entry], source: TensorSource) -> Iterator[tuple[str, Tensor]]:
    """One Megatron tensor is in memory at a time."""
    for entry in table:
        yield from zip(entry.hf, entry.layout.to_hf(source.read(entry.megatron)), strict=True)


def _copy_code(folder: Path) -> None:
    """Put the model's code beside its configuration."""
    for source in Path(megatron_focus.release.__path__[0]).glob("*.py"):
        if source.name != "__init__.py":
            shutil.copyfile(source, folder / source.name)
