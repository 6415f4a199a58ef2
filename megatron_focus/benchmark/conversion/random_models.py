"""Folders as published models have them, of a wanted size, with random bfloat16 weights written tensor by tensor."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, PretrainedConfig

from data_pipeline.conversations.tokenizer import train_tokenizer
from megatron_focus.conversion.safetensors_writer import SafetensorsWriter
from megatron_focus.conversion.tensor_source import TensorInfo

_DTYPE = torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A language model and a tower; the number of decoder layers follows from the wanted size."""

    up_to: float
    """Largest size that these shapes are for, in GB."""
    text: Mapping[str, Any]
    vision: Mapping[str, Any]


_SMALL_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


def _text(width: int, mlp: int, heads: int, groups: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
    }


SHAPES = (
    Shapes(up_to=0.6, text=_text(768, 2048, 12, 4, 32000), vision=_SMALL_TOWER),
    Shapes(up_to=2.0, text=_text(2048, 5632, 32, 4, 32000), vision=_SMALL_TOWER),  # TinyLlama's
    Shapes(up_to=10.0, text=_text(2048, 8192, 32, 8, 128256), vision=_CLIP_LARGE),  # Llama-3.2-1B's, untied
    Shapes(up_to=math.inf, text=_text(4096, 14336, 32, 8, 128256), vision=_CLIP_LARGE),  # Llama-3-8B's
)


@dataclass(frozen=True, kw_only=True)
class RandomModel:
    """What :func:`write_model` wrote."""

    llm: Path
    vision: Path
    tokenizer: Path
    num_bytes: int
    layers: int
    largest_tensor: int
    """Bytes."""


def write_model(folder: Path, gigabytes: float) -> RandomModel:
    """Write a Llama folder, a CLIP tower and a tokenizer.

    Args:
        folder: an existing folder.
        gigabytes: wanted size of the weights, in 10^9 bytes; the decoder gets the even number of layers, at least two,
            that comes nearest.
    """
    shapes = next(shapes for shapes in SHAPES if gigabytes <= shapes.up_to)
    vision = CLIPVisionConfig(**shapes.vision, image_size=336, patch_size=14)
    two, four = (_bytes(_llm_infos(_llm_config(shapes, layers))) for layers in (2, 4))
    rest = gigabytes * 1e9 - two - _bytes(_infos(CLIPVisionModel, vision))
    layers = 2 + 2 * max(0, round(rest / (four - two)))
    text = _llm_config(shapes, layers)
    parts = {"llm": (text, _llm_infos(text)), "vision": (vision, _infos(CLIPVisionModel, vision))}
    generator = torch.Generator().manual_seed(0)
    for name, (config, infos) in parts.items():
        (folder / name).mkdir()
        config.dtype = _DTYPE
        config.save_pretrained(folder / name)
        with SafetensorsWriter(folder / name, infos, "5GB") as writer:
            for tensor, info in infos.items():
                values = torch.empty(info.shape, dtype=info.dtype).uniform_(-0.02, 0.02, generator=generator)
                writer.write(tensor, values)
    train_tokenizer(["What is it? It is a word of the answer."] * 9, 400, folder / "tokenizer")
    every = [info for _, infos in parts.values() for info in infos.values()]
    return RandomModel(
        llm=folder / "llm",
        vision=folder / "vision",
        tokenizer=folder / "tokenizer",
        num_bytes=sum(map(_size, every)),
        layers=layers,
        largest_tensor=max(map(_size, every)),
    )


def _llm_config(shapes: Shapes, layers: int) -> LlamaConfig:
    return LlamaConfig(**shapes.text, num_hidden_layers=layers, max_position_embeddings=8192)


def _llm_infos(config: LlamaConfig) -> dict[str, TensorInfo]:
    with torch.device("meta"):
        return _of(AutoModelForCausalLM.from_config(config))


def _infos(kind: type[nn.Module], config: PretrainedConfig) -> dict[str, TensorInfo]:
    with torch.device("meta"):
        return _of(kind(config))


def _of(model: nn.Module) -> dict[str, TensorInfo]:
    return {name: TensorInfo(tuple(tensor.shape), _DTYPE) for name, tensor in model.state_dict().items()}


def _bytes(infos: Mapping[str, TensorInfo]) -> int:
    return sum(map(_size, infos.values()))


def _size(info: TensorInfo) -> int:
    return math.prod(info.shape) * info.dtype.itemsize
