"""Folders as published models have them, small, with random weights: language models, CLIP towers, LLaVA-NeXT."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from data_pipeline.conversations.tokenizer import LLAMA3_SPECIAL_TOKENS, add_image_and_pad
from tests.tiny import GEOMETRY
from tests.unit.release.tiny_models import lively

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ROWS = 256 + len(LLAMA3_SPECIAL_TOKENS)
"""Tokens of the language models, without image and pad."""
OVERRIDES = ["model.text_sampler.layer=2", "model.text_sampler.layer_range=[0,3]"]
"""For four layers; the defaults are for 32."""


def own_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and Llama-3's special tokens: neither image nor pad."""
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(LLAMA3_SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def write_tokenizer(folder: Path) -> Path:
    """What ``tools/prepare_tokenizer.py`` makes of the models' tokenizer."""
    add_image_and_pad(own_tokenizer(), "llama3").save_pretrained(folder)
    return folder


def text_config(family: str, **changes):
    """Shapes of no accidental equality; GQA with two queries a group unless changed."""
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}[family]
    settings = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16384,
        "vocab_size": ROWS,
        "bos_token_id": 256,
        "eos_token_id": 260,
        "pad_token_id": None,
    }
    special = {"sliding_window": None} if family == "mistral" else {}
    return kind(**settings | special | changes)


def vision_settings(**changes) -> dict:
    settings = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": GEOMETRY.tile_size,
        "patch_size": GEOMETRY.patch_size,
    }
    return settings | changes


def write_language_model(
    folder: Path, family: str, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB", **changes
) -> Path:
    model = lively(AutoModelForCausalLM.from_config(text_config(family, **changes)), seed=1)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    own_tokenizer().save_pretrained(folder)
    return folder


def write_tower(folder: Path, whole: bool = False, dtype: torch.dtype = torch.float32, **changes) -> Path:
    """A CLIP vision model, or a whole CLIP model around it."""
    vision = vision_settings(**changes)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text | {"vocab_size": 10})) if whole else None
    lively(model or CLIPVisionModel(CLIPVisionConfig(**vision)), seed=2).to(dtype).save_pretrained(folder)
    return folder


def write_llava_next(folder: Path, family: str = "llama", **changes) -> Path:
    """A stock LLaVA-NeXT whose embedding has rows for image and pad already, with its tokenizer.

    Its tensors have the names of ``llava-hf``'s folders, which transformers 5 reads and no longer writes.
    """
    tied = bool(changes.get("tie_word_embeddings", False))
    config = LlavaNextConfig(
        vision_config=vision_settings() | {"model_type": "clip_vision_model"},
        text_config=text_config(family, vocab_size=ROWS + 2, **changes).to_dict(),
        image_token_index=ROWS,
        image_grid_pinpoints=[[h, w] for w, h in GEOMETRY.grid_pinpoints],
        tie_word_embeddings=tied,
    )
    lively(LlavaNextForConditionalGeneration(config), seed=3).save_pretrained(folder)
    rename_tensors(folder, "vision_tower.", "vision_tower.vision_model.")
    write_tokenizer(folder)
    return folder


def rename_tensors(folder: Path, begin: str, other: str) -> None:
    """Let the names in a folder of one shard that begin with ``begin`` begin with ``other``."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    renamed = {other + n.removeprefix(begin) if n.startswith(begin) else n: t for n, t in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, path, metadata={"format": "pt"})
