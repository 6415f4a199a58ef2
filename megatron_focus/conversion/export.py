"""Writing a Hugging Face release folder from a whole Megatron state."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import AutoTokenizer, LlavaNextProcessor, PreTrainedTokenizerBase
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

import megatron_focus.release
from data_pipeline.anyres import hf_grid_pinpoints
from megatron_focus.conversion.model_card import model_card
from megatron_focus.conversion.model_facts import ModelFacts
from megatron_focus.conversion.parameter_table import megatron_to_hf
from megatron_focus.conversion.release_config import generation_config, release_config

MAX_SHARD_SIZE = "5GB"


def _load_tokenizer(folder: Path, facts: ModelFacts) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left as generation needs it, with the chat template of the model's training.

    Raises:
        ValueError: if its ids are not those of the model.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if len(tokenizer) > facts.text.vocab_size:
        raise ValueError(f"tokenizer {folder} has {len(tokenizer)} ids, the model only {facts.text.vocab_size}")
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    if image_id != facts.tokens.image_token_id:
        raise ValueError(f"tokenizer {folder} has id {image_id} for <image>, the model {facts.tokens.image_token_id}")
    if tokenizer.pad_token_id != facts.tokens.pad_token_id:
        raise ValueError(
            f"tokenizer {folder} pads with {tokenizer.pad_token_id}, the model {facts.tokens.pad_token_id}"
        )
    tokenizer.chat_template = facts.tokens.chat_template
    return tokenizer


def _processor(tokenizer: PreTrainedTokenizerBase, facts: ModelFacts) -> LlavaNextProcessor:
    """LLaVA-NeXT's own processor for the model's tiles."""
    tile = facts.image.tile_size
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": tile},
        crop_size={"height": tile, "width": tile},
        image_grid_pinpoints=hf_grid_pinpoints(facts.image),
    )
    return LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=facts.image.patch_size,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,  # the class token, which the strategy takes off again
    )


def _copy_code(folder: Path) -> None:
    """Put the model's code beside its configuration."""
    for source in Path(megatron_focus.release.__path__[0]).glob("*.py"):
        if source.name != "__init__.py":
            shutil.copyfile(source, folder / source.name)


def write_release(
    state: Mapping[str, Tensor],
    facts: ModelFacts,
    tokenizer_folder: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    dtype: torch.dtype,
) -> None:
    """Write weights, configuration, code, processor, generation defaults and model card.

    The folder is written under another name beside its place and renamed when it is whole, so an interrupted export
    leaves no folder that looks like a release.

    Args:
        state: Megatron names to whole tensors; see ``parameter_table``.
        facts: the model's dimensions, samplers and ids.
        tokenizer_folder: a Hugging Face tokenizer with ``<image>`` and a pad token.
        out_dir: folder to create; it must not exist.
        dtype: type of the weights in the release.

    Raises:
        ValueError: if ``out_dir`` exists, if the tokenizer does not fit the model, or listing the tensors that do not
            fit.
    """
    out, tokenizer_path = Path(out_dir), Path(tokenizer_folder)
    if out.exists():
        raise ValueError(f"{out} exists; export writes to a new folder")
    config = release_config(facts, dtype)
    tokenizer = _load_tokenizer(tokenizer_path, facts)
    weights = megatron_to_hf(state, facts)

    unfinished = out.with_name(f".{out.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    # Copies, because tensors that are parts of one Megatron tensor share its memory.
    separate = {name: tensor.detach().to("cpu", dtype, copy=True).contiguous() for name, tensor in weights.items()}
    save_torch_state_dict(separate, unfinished, max_shard_size=MAX_SHARD_SIZE, metadata={"format": "pt"})
    (unfinished / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    _copy_code(unfinished)
    _processor(tokenizer, facts).save_pretrained(unfinished)
    generation_config(facts).save_pretrained(unfinished)
    (unfinished / "README.md").write_text(model_card(facts), encoding="utf-8")
    unfinished.rename(out)
