"""The same random samples in the form that each side takes.

Shapes: S samples, N text tokens of the row, T fused tokens of a sample, t tiles of an image, P tile side.
"""

from dataclasses import replace

import torch
from torch import Tensor

from data_pipeline.anyres import normalise, plan_tiles, visual_token_count
from data_pipeline.row import IGNORE_INDEX, EncodedSample, PackedRow, make_row
from megatron_focus.benchmark.presets import Preset

SEED = 1234


def image_token_id(preset: Preset) -> int:
    """The placeholder: the last id of the vocabulary, which no text token uses."""
    return preset.model.language.vocab_size - 1


def sample_tokens(preset: Preset) -> int:
    """T with the samplers off, text and LLaVA-NeXT's visual tokens."""
    text = preset.lead_tokens + preset.instruction_tokens + preset.answer_tokens
    return text + visual_token_count(*preset.image_size, preset.model.image)


def training_row(preset: Preset) -> PackedRow:
    """Samples of random text and noise: lead, image, instruction, answer."""
    generator = torch.Generator().manual_seed(SEED)
    plan = plan_tiles(*preset.image_size, preset.model.image)
    side, count = preset.model.image.tile_size, 1 + plan.rows * plan.cols
    lead, ask, answer = preset.lead_tokens, preset.instruction_tokens, preset.answer_tokens
    samples = []
    for index in range(preset.samples):
        tokens = torch.randint(0, image_token_id(preset), (lead + 1 + ask + answer,), generator=generator)
        tokens[lead] = image_token_id(preset)
        labels = torch.full_like(tokens, IGNORE_INDEX)
        labels[-answer - 1 : -1] = tokens[-answer:]
        user_turn = torch.full((len(tokens),), -1)
        user_turn[lead + 1 : lead + 1 + ask] = 0
        samples.append(
            EncodedSample(
                id=f"benchmark {index}",
                key=index,
                tokens=tokens,
                labels=labels,
                user_turn=user_turn,
                tiles=[torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)],
                grids=[(plan.rows, plan.cols)],
                image_sizes=[preset.image_size],
            )
        )
    return make_row(samples, preset.model.image)


def prefill_row(row: PackedRow) -> PackedRow:
    """The same row with a label at each sample's last token alone, so that the head computes one token a sample."""
    labels = torch.full_like(row.labels, IGNORE_INDEX)
    labels[row.cu_seqlens[1:].long() - 1] = 0
    return replace(row, labels=labels)


def transformers_inputs(row: PackedRow, preset: Preset, dtype: torch.dtype) -> dict[str, Tensor]:
    """What ``LlavaNextForConditionalGeneration`` takes: ``input_ids`` [S, T], ``pixel_values`` [S, t, 3, P, P], ...

    ``labels`` stand at the tokens they name, because transformers shifts them itself.
    """
    tokens = row.tokens.view(preset.samples, -1)
    lead, answer = preset.lead_tokens, preset.answer_tokens
    visual = torch.full(
        (preset.samples, visual_token_count(*preset.image_size, preset.model.image)), image_token_id(preset)
    )
    input_ids = torch.cat([tokens[:, :lead], visual, tokens[:, lead + 1 :]], dim=1)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    labels[:, -answer:] = input_ids[:, -answer:]
    return {
        "input_ids": input_ids,
        "pixel_values": normalise(row.tiles, dtype).unflatten(0, (preset.samples, -1)),
        "image_sizes": row.image_sizes.long(),
        "labels": labels,
    }
