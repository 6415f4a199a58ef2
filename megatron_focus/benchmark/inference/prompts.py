"""The same random prompts for both models: lead, image, instruction, header of the answer.

Shapes: S samples, T tokens of a prompt with LLaVA-NeXT's placeholders.
"""

import torch
from torch import Tensor

from megatron_focus.benchmark.presets import Preset
from megatron_focus.benchmark.workload import training_row, transformers_inputs

START, END = 0, 1
"""Markers before and behind a user's turn, which no other token is."""


def prompt_inputs(preset: Preset, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """``input_ids`` [S, T], ``attention_mask``, ``pixel_values`` and ``image_sizes`` of ``preset.samples`` prompts.

    A turn begins with the last of the lead tokens and ends with the first of the answer's, so that the instruction
    tokens are what the text-guided sampler takes for the user's.
    """
    inputs = transformers_inputs(training_row(preset), preset, dtype)
    del inputs["labels"]
    ids = inputs["input_ids"].clamp(min=max(START, END) + 1)
    ids[:, preset.lead_tokens - 1] = START
    ids[:, -preset.answer_tokens] = END
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {name: tensor.to(device) for name, tensor in inputs.items()}
