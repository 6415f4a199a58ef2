"""The way of examples/paper/README.md: stage 1 without samplers, a selector added to its weights, stage 2 with it."""

import copy
import json

import pytest
import torch

from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import load_tokenizer
from data_pipeline.preparation.prepare import prepare
from data_pipeline.sources.llava_json import LlavaJson
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.conversion.checkpoint_reader import read_model
from tests.distributed.harness import run_ranks
from tests.distributed.workers import start
from tests.functional.runs import train

SELECTORS = {"three": (["1x1", "2x2", "4x4"], 4), "keep or discard": (["1x1", "discard"], 1)}


@pytest.fixture
def captions(dataset, tmp_path):
    """The pictures of the data set with a caption each."""
    records = [r for r in json.loads((dataset / "data.json").read_text()) if "image" in r]
    for record in records:
        record["conversations"][0]["value"] = "<image>"
    (tmp_path / "captions.json").write_text(json.dumps(records))
    source = LlavaJson(tmp_path / "captions.json", dataset / "images", "captions")
    renderer = Renderer(load_tokenizer(dataset / "tokenizer"), "plain")
    prepare([source], tmp_path / "captions", renderer=renderer, samples_per_shard=8, num_workers=0)
    return tmp_path / "captions"


def tensors(folder, config):
    start(config)
    return read_model(CheckpointStore(folder).latest())


@pytest.mark.slow
def test_stage_2_starts_with_the_weights_of_stage_1_and_a_new_selector(run_config, captions):
    stage_1 = run_config({}, {"train_iters": 2}, name="stage1", freeze=["vision_tower", "language_model"])
    stage_1.data.chat_template, stage_1.data.path = "plain", str(captions)
    stage_1.model.vision_sampler.enabled, stage_1.model.text_sampler.mode = False, "off"
    run_ranks(train, 1, stage_1)
    (first,) = run_ranks(tensors, 1, stage_1.checkpoint.save, stage_1)

    for name, (scales, window) in SELECTORS.items():
        stage_2 = run_config({"tensor_model_parallel_size": 2}, {"train_iters": 1}, name=f"{name} 2", lr=1e-30)
        stage_2.model.vision_sampler = copy.deepcopy(stage_1.model.vision_sampler)
        stage_2.model.vision_sampler.enabled = True
        stage_2.model.vision_sampler.scales, stage_2.model.vision_sampler.window = scales, window
        stage_2.checkpoint.pretrained = stage_1.checkpoint.save
        with pytest.raises(AssertionError, match=r"does not fit this model.*vision_sampler"):
            run_ranks(train, 2, stage_2)
        stage_2.checkpoint.new_modules = ["vision_sampler"]
        said = run_ranks(train, 2, stage_2)[0].said
        assert any(line.endswith("stage1, with a new vision_sampler") for line in said)
        (second,) = run_ranks(tensors, 1, stage_2.checkpoint.save, stage_1)
        new = {f"vision_sampler.selector.{kind}" for kind in ("weight", "bias")}
        assert second.keys() - first.keys() == new and first.keys() <= second.keys()
        assert second["vision_sampler.selector.weight"].shape == (len(scales), 16)
        # A step with a learning rate of 1e-30 moves nothing but zeros.
        assert all(torch.allclose(second[key], first[key], rtol=0.0, atol=1e-20) for key in first)
