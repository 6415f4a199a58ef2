"""A small release as the exporter writes it from a checkpoint, and what it is made of."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import load_tokenizer, train_tokenizer
from megatron_focus.conversion.checkpoint_reader import CheckpointTensors
from megatron_focus.conversion.export import write_release
from megatron_focus.conversion.model_facts import ModelFacts
from megatron_focus.conversion.parameter_table import hf_to_megatron
from tests.unit.conversion.tiny_checkpoint import write_state
from tests.unit.conversion.tiny_facts import InMemory, random_state, tiny_facts
from tests.unit.release import tiny_models as tiny


def write_tokenizer(folder: Path) -> Path:
    train_tokenizer(["what is it? a cat and a dog, two of them."] * 4, tiny.VOCAB, folder)
    return folder


def facts_for(tokenizer_folder: Path, family: str = "llama", sampler: bool = True) -> ModelFacts:
    """Of a model trained with this tokenizer and another chat template than the tokenizer's."""
    tokenizer = load_tokenizer(tokenizer_folder)
    renderer = Renderer(tokenizer, "vicuna")
    start, end = renderer.instruction_markers()
    return tiny_facts(
        family,
        sampler=sampler,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"]),
        instruction_start_token_ids=start,
        instruction_end_token_ids=end,
        chat_template=renderer.chat_template,
    )


def lively_state(facts: ModelFacts) -> dict[str, Tensor]:
    """Weights with which windows choose different scales."""
    return hf_to_megatron(tiny.focus_model(vision={}, text={}).state_dict(), facts)


def export_checkpoint(folder: Path) -> Path:
    """Checkpoint, tokenizer and ``release`` in a folder; returns the release."""
    tokenizer, checkpoint, release = folder / "tokenizer", folder / "iter_0000500", folder / "release"
    facts = facts_for(write_tokenizer(tokenizer))
    checkpoint.mkdir()
    write_state(checkpoint, lively_state(facts))
    write_release(CheckpointTensors(checkpoint), facts, tokenizer, release, dtype=torch.float32)
    return release


def export_llava_next(folder: Path, family: str, **text) -> tuple[Path, ModelFacts]:
    """A model without samplers as transformers' own LLaVA-NeXT, with ``tokenizer`` beside it; and its facts."""
    facts = facts_for(write_tokenizer(folder / "tokenizer"), family, sampler=False)
    facts = replace(facts, text=replace(facts.text, **text), text_sampler={"enabled": False})
    release = folder / "llava-next"
    state = {name: 3 * tensor for name, tensor in random_state(facts).items()}  # so that logits differ
    write_release(InMemory(state), facts, folder / "tokenizer", release, layout="llava-next", dtype=torch.float32)
    return release, facts
