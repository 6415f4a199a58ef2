"""Asking a release several questions in one batch, each in a conversation of its own."""

import time
from dataclasses import dataclass

import torch

from megatron_focus.evaluation.visual_tokens import VisualTokenCounts, count_visual_tokens
from megatron_focus.inference.conversation import Turn, model_inputs
from megatron_focus.inference.release_folder import Release


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back for one question."""

    text: str
    tokens: VisualTokenCounts
    cut: bool
    """Whether the most tokens allowed were written without an end."""
    seconds: float
    """Its share of the batch's time, from the pictures in memory to the text."""


def ask(release: Release, batch: list[Turn], max_new_tokens: int) -> list[Reply]:
    """Answer greedily.

    Args:
        release: the model.
        batch: one user's turn or more.
        max_new_tokens: an answer ends there at the latest.
    """
    start = time.perf_counter()
    inputs = model_inputs(release, [[turn] for turn in batch])
    with torch.inference_mode():
        output = release.model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
            output_selection=True,
        )
    said = output.sequences[:, inputs["input_ids"].shape[1] :]
    texts = release.processor.batch_decode(said, skip_special_tokens=True)
    ended = torch.isin(said, _end_ids(release, said.device)).any(dim=1).tolist()
    seconds = (time.perf_counter() - start) / len(batch)
    layers = release.model.config.text_config.num_hidden_layers
    counts = [
        count_visual_tokens([image for image in output.selection if image.row == row], layers)
        for row in range(len(batch))
    ]
    return [
        Reply(text=text.strip(), tokens=tokens, cut=not end, seconds=seconds)
        for text, tokens, end in zip(texts, counts, ended, strict=True)
    ]


def _end_ids(release: Release, device: torch.device) -> torch.Tensor:
    """int64, the ids that end an answer; none where the release names none."""
    ids = release.model.generation_config.eos_token_id
    return torch.tensor([] if ids is None else ids, dtype=torch.int64, device=device).reshape(-1)
