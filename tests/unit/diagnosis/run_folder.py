"""A run's files, small: tokenizer, data set, checkpoint; and the YAML file that names them."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from PIL import Image

from data_pipeline.config import DataConfig
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import load_tokenizer, train_tokenizer
from data_pipeline.preparation.prepare import prepare
from data_pipeline.sources.llava_json import LlavaJson
from megatron_focus.config.loading import dump_config, load_config
from megatron_focus.config.schema import CheckpointConfig, ParallelConfig, RunConfig, TrainingConfig
from tests.tiny import tiny_model


def write_run_folder(folder: Path) -> Path:
    """Make ``folder/config.yaml`` and all that it names but ``checkpoint.save``; returns the YAML file."""
    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.full((60, 80, 3), 90, dtype=np.uint8)).save(folder / "images" / "grey.png")
    turns = [{"from": "human", "value": "<image>\nWhat colour is it?"}, {"from": "gpt", "value": "Grey."}]
    records = [{"id": f"s{i}", "image": "grey.png", "conversations": turns} for i in range(4)]
    (folder / "data.json").write_text(json.dumps(records))
    train_tokenizer(["What colour is it? Grey."] * 8, 320, folder / "tokenizer")
    source = LlavaJson(folder / "data.json", folder / "images", "grey")
    renderer = Renderer(load_tokenizer(folder / "tokenizer"), "llama3")
    prepare([source], folder / "shards", renderer=renderer, samples_per_shard=2, progress=False)
    weights = {"a": torch.arange(1000.0), "b": torch.zeros(10)}
    dcp.save(weights, checkpoint_id=folder / "pretrained" / "iter_0000000", no_dist=True)
    config = RunConfig(
        model=tiny_model(vocab_size=320),
        parallel=ParallelConfig(use_distributed_optimizer=False),
        data=DataConfig(
            path=str(folder / "shards"), tokenizer=str(folder / "tokenizer"), max_sequence_length=800, num_workers=0
        ),
        training=TrainingConfig(precision="fp32", global_batch_size=6),
        checkpoint=CheckpointConfig(save=str(folder / "save" / "run"), pretrained=str(folder / "pretrained")),
    )
    (folder / "config.yaml").write_text(dump_config(config))
    assert OmegaConf.structured(load_config(folder / "config.yaml")) == OmegaConf.structured(config)
    return folder / "config.yaml"
