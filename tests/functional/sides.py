"""Megatron and transformers side by side: the same weights, one packed row and its samples."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data_pipeline.anyres import normalise, visual_token_count
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import load_tokenizer
from data_pipeline.row import IGNORE_INDEX, PackedRow
from megatron_focus.config.schema import ModelConfig, VisionSamplerConfig
from megatron_focus.conversion.from_config import model_facts
from megatron_focus.conversion.parameter_table import hf_to_megatron
from megatron_focus.conversion.release_config import release_config
from megatron_focus.models.focus_llava import FocusLLaVA
from tests.functional.single import one_rank_model
from tests.tiny import GEOMETRY, IMAGE_TOKEN, make_row, tiny_model
from tests.unit.release.tiny_models import lively

SAMPLES = [[(100, 80)], [(57, 333)], [], [(200, 41), (56, 56)], [(112, 112)], [(400, 3)], [(3, 400), (60, 90)]]
"""Images of each sample; the thin ones have no cell inside the picture, and the tall one has its newlines still."""


FAMILIES = {
    "llama": {"architecture": "llama"},
    "llama 3.1": {"architecture": "llama", "rope_scaling": True, "max_position_embeddings": 16384},
    "qwen2": {"architecture": "qwen2", "add_qkv_bias": True},
    "mistral": {"architecture": "mistral", "num_query_groups": 4},
}


def family(name: str) -> ModelConfig:
    """A tiny model of the family, with both samplers."""
    model = tiny_model(num_layers=4, vocab_size=320, **FAMILIES[name])
    model.text_sampler.layer = 2
    return model


def without_samplers(model: ModelConfig) -> ModelConfig:
    """The same model with both samplers off."""
    model.vision_sampler = VisionSamplerConfig(enabled=False)
    model.text_sampler.mode = "off"
    return model


def both_sides(
    model: ModelConfig, tokenizer_folder: str, kind: type[PreTrainedModel], seed: int
) -> tuple[FocusLLaVA, PreTrainedModel]:
    """Megatron's model on this rank and one of transformers' class ``kind``, with the same lively weights."""
    tokenizer = load_tokenizer(tokenizer_folder)
    chunk = one_rank_model(model, tokenizer.image_token_id).eval()
    facts = model_facts(model, tokenizer, "llama3")
    other = lively(kind(release_config(facts, torch.float32)), seed)
    if hasattr(other.model, "vision_sampler"):
        # What all windows' scores have in common would choose one scale for all of them.
        weight, bias = other.model.vision_sampler.selector.weight.data, other.model.vision_sampler.selector.bias.data
        weight -= weight.mean(1, keepdim=True)
        bias.zero_()
    chunk.load_state_dict(hf_to_megatron(other.state_dict(), facts), strict=True)
    return chunk, other


def row_of_samples(
    tokenizer_folder: str, seed: int, images: list[list[tuple[int, int]]] = SAMPLES, words: int = 3
) -> PackedRow:
    """A row with the tokenizer's placeholder, and its markers around each instruction; see ``make_row``."""
    tokenizer = load_tokenizer(tokenizer_folder)
    start, end = Renderer(tokenizer, "llama3").instruction_markers()
    row = make_row(seed, images, words)
    row.tokens[row.tokens == IMAGE_TOKEN] = tokenizer.image_token_id
    row = with_markers(row, start[0], end[0])
    row.placeholder = tokenizer.image_token_id
    return row


def with_markers(row: PackedRow, start: list[int], end: list[int]) -> PackedRow:
    """The row with each instruction between the ids that open and close a user turn."""
    keys = {"tokens": [], "labels": [], "user_turn": []}
    lengths = []
    for begin, stop in zip(row.cu_seqlens[:-1].tolist(), row.cu_seqlens[1:].tolist(), strict=True):
        length = 0
        for i in range(begin, stop):
            turn = int(row.user_turn[i])
            flag = turn >= 0
            opens = flag and int(row.user_turn[i - 1]) != turn
            closes = flag and int(row.user_turn[i + 1]) != turn
            own = int(row.tokens[i])
            pieces = [(t, -1) for t in start * opens] + [(own, turn)] + [(t, -1) for t in end * closes]
            for token, of_turn in pieces:
                keys["tokens"].append(token)
                keys["labels"].append(IGNORE_INDEX)
                keys["user_turn"].append(of_turn)
            length += len(pieces)
        lengths.append(length)
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    fields = {name: torch.tensor(values) for name, values in keys.items()}
    return PackedRow(**{**row.tensors(), **fields, "cu_seqlens": cu}, sample_ids=row.sample_ids)


def samples_of(row: PackedRow) -> list[tuple[slice, slice, slice]]:
    """For each sample its slices of tokens, images and tiles."""
    counts = [int(r * c) + 1 for r, c in row.grids.tolist()]
    result, image, tile = [], 0, 0
    for begin, end in zip(row.cu_seqlens[:-1].tolist(), row.cu_seqlens[1:].tolist(), strict=True):
        images = sum(1 for t in row.tokens[begin:end].tolist() if t == row.placeholder)
        tiles = sum(counts[image : image + images])
        result.append((slice(begin, end), slice(image, image + images), slice(tile, tile + tiles)))
        image, tile = image + images, tile + tiles
    return result


def hf_inputs(row: PackedRow, part: tuple[slice, slice, slice]) -> dict[str, Tensor]:
    """What a transformers model gets for one sample of the row: expanded ids, padded tiles, sizes."""
    tokens, images, tiles = part
    sizes = row.image_sizes[images].tolist()
    counts = iter([visual_token_count(height, width, GEOMETRY) for height, width in sizes])
    ids = []
    for token in row.tokens[tokens].tolist():
        ids += [token] * (next(counts) if token == row.placeholder else 1)
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if sizes:
        pixels = normalise(row.tiles[tiles], torch.float32)
        parts = pixels.split([int(r * c) + 1 for r, c in row.grids[images].tolist()])
        inputs["pixel_values"] = nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
        inputs["image_sizes"] = row.image_sizes[images].long()
    return inputs


def hf_batch(row: PackedRow) -> dict[str, Tensor]:
    """All samples of the row as one batch, padded on the left."""
    parts = [hf_inputs(row, part) for part in samples_of(row)]
    pixels = [tiles for part in parts for tiles in part.get("pixel_values", [])]
    batch = {"pixel_values": nn.utils.rnn.pad_sequence(pixels, batch_first=True)}
    batch["image_sizes"] = torch.cat([part["image_sizes"] for part in parts if "image_sizes" in part])
    for name in ("input_ids", "attention_mask"):
        rows = [part[name][0] for part in parts]
        batch[name] = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    return batch
