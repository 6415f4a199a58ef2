"""A model and rows small enough for two CPU cores, in which every part is present."""

import torch

from data_pipeline.anyres import plan_tiles
from data_pipeline.config import ImageGeometry
from data_pipeline.row import IGNORE_INDEX, PackedRow
from megatron_focus.config.schema import (
    LanguageConfig,
    ModelConfig,
    TextSamplerConfig,
    VisionConfig,
    VisionSamplerConfig,
)

IMAGE_TOKEN = 250
GEOMETRY = ImageGeometry(
    tile_size=56, patch_size=14, grid_pinpoints=[[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
)


def tiny_model(**language) -> ModelConfig:
    """Tiles of 4 x 4 cells, window 2, 8 decoder layers, GQA."""
    settings = {
        "num_layers": 8,
        "hidden_size": 64,
        "ffn_hidden_size": 96,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "vocab_size": 251,
        "make_vocab_size_divisible_by": 64,
    }
    return ModelConfig(
        image=GEOMETRY,
        vision=VisionConfig(num_layers=3, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4),
        language=LanguageConfig(**settings | language),
        vision_sampler=VisionSamplerConfig(window=4, scales=["1x1", "2x2", "4x4"]),
        text_sampler=TextSamplerConfig(layer=3, gamma=0.6, layer_range=[0, 7], gamma_range=[0.4, 0.9]),
        init_method_std=0.1,
    )


def split_row(row: PackedRow) -> list[PackedRow]:
    """Each sample of a row as a row of its own."""
    counts = (1 + row.grids[:, 0] * row.grids[:, 1]).tolist()
    rows, image, tile = [], 0, 0
    for index, sample_id in enumerate(row.sample_ids):
        begin, end = row.cu_seqlens[index : index + 2].tolist()
        images = int((row.tokens[begin:end] == IMAGE_TOKEN).sum())
        tiles = sum(counts[image : image + images])
        rows.append(
            PackedRow(
                tokens=row.tokens[begin:end],
                labels=row.labels[begin:end],
                user_turn=row.user_turn[begin:end],
                cu_seqlens=torch.tensor([0, end - begin], dtype=torch.int32),
                tiles=row.tiles[tile : tile + tiles],
                grids=row.grids[image : image + images],
                image_sizes=row.image_sizes[image : image + images],
                sample_keys=row.sample_keys[index : index + 1],
                sample_ids=[sample_id],
            )
        )
        image, tile = image + images, tile + tiles
    return rows


def make_row(seed: int, image_sizes: list[list[tuple[int, int]]], words: int = 3) -> PackedRow:
    """A row with one sample per entry, which lists the (height, width) of the sample's images.

    A sample is: ``words`` tokens, its images, an instruction, an answer.
    """
    return chat_row(seed, [(images, 1) for images in image_sizes], words)


def chat_row(seed: int, samples: list[tuple[list[tuple[int, int]], int]], words: int = 3) -> PackedRow:
    """A row with one sample per entry: the (height, width) of its images, and its number of questions with answers.

    A sample is: ``words`` tokens, its images, and then questions and answers in turn.
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 240, (count,), generator=generator).tolist()

    tokens, labels, user_turn, starts, sizes, grids, tiles = [], [], [], [0], [], [], []
    for images, turns in samples:
        sample = ids(words) + [IMAGE_TOKEN] * len(images)
        turn_of, learnt = [-1] * len(sample), [False] * len(sample)
        for turn in range(turns):
            ask, answer = ids(4 + seed % 3), ids(5)
            sample += ask + answer
            turn_of += [turn if images else -1] * len(ask) + [-1] * len(answer)
            learnt += [False] * len(ask) + [True] * len(answer)
        tokens += sample
        labels += [sample[i + 1] if i + 1 < len(sample) and learnt[i + 1] else IGNORE_INDEX for i in range(len(sample))]
        user_turn += turn_of
        starts.append(len(tokens))
        for height, width in images:
            plan = plan_tiles(height, width, GEOMETRY)
            sizes.append([height, width])
            grids.append([plan.rows, plan.cols])
            count = 1 + plan.rows * plan.cols
            tiles.append(torch.randint(0, 256, (count, 3, 56, 56), generator=generator, dtype=torch.uint8))
    return PackedRow(
        tokens=torch.tensor(tokens),
        labels=torch.tensor(labels),
        user_turn=torch.tensor(user_turn),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        tiles=torch.cat(tiles) if tiles else torch.zeros(0, 3, 56, 56, dtype=torch.uint8),
        grids=torch.tensor(grids, dtype=torch.int32).view(-1, 2),
        image_sizes=torch.tensor(sizes, dtype=torch.int32).view(-1, 2),
        sample_keys=torch.arange(len(samples)) + 1000 * seed,
        sample_ids=[f"row{seed}-{i}" for i in range(len(samples))],
    )
