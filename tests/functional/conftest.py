"""A data set and a configuration with which the real trainer runs in seconds."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data_pipeline.config import DataConfig
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import load_tokenizer, train_tokenizer
from data_pipeline.preparation.prepare import prepare
from data_pipeline.sources.llava_json import LlavaJson
from tests.distributed.workers import configure
from tests.tiny import tiny_model

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "grey": (128, 128, 128)}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Folders of a tokenizer and of 16 prepared samples: coloured pictures of several shapes, and two of text alone."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    records = []
    for number in range(16):
        name, colour = list(COLOURS.items())[number % 4]
        record = {"id": f"s{number}"}
        picture = ""
        if number % 8 != 7:
            height, width = (int(v) for v in random.integers(40, 240, 2))
            noise = random.integers(-20, 20, (height, width, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            (folder / "images" / f"{number}.png").write_bytes(buffer.getvalue())
            record["image"], picture = f"{number}.png", "<image>\n"
        question = f"{picture}What colour is picture {number}?"
        record["conversations"] = [
            {"from": "human", "value": question},
            {"from": "gpt", "value": f"It is {name}."},
        ]
        records.append(record)
    (folder / "data.json").write_text(json.dumps(records))
    texts = [turn["value"] for record in records for turn in record["conversations"]] * 4
    train_tokenizer(texts, 320, folder / "tokenizer")
    source = LlavaJson(folder / "data.json", folder / "images", "colours")
    renderer = Renderer(load_tokenizer(folder / "tokenizer"), "llama3")
    prepare([source], folder / "shards", renderer=renderer, samples_per_shard=6, progress=False)
    return folder


@pytest.fixture
def run_config(dataset, tmp_path):
    """``make(parallel=..., training=..., **optimizer)`` gives a configuration that trains on the data set."""

    def make(parallel=None, training=None, name="run", **optimizer):
        model = tiny_model(num_layers=4, vocab_size=320)
        model.text_sampler.layer_range = [0, 3]
        model.text_sampler.layer = 2
        config = configure(
            model,
            parallel,
            {"train_iters": 6, "global_batch_size": 4} | (training or {}),
            **{"lr": 2e-3, "adam_eps": 1e-8, "lr_decay_style": "cosine"} | optimizer,
        )
        config.data = DataConfig(
            path=str(dataset / "shards"),
            tokenizer=str(dataset / "tokenizer"),
            max_sequence_length=800,
            num_workers=0,
        )
        config.checkpoint.save = str(tmp_path / name)
        config.checkpoint.save_interval = 3
        return config

    return make
