"""Every file of examples/backbones runs on its GPUs, and the plan says that it fits."""

import contextlib
import io
from pathlib import Path

import pytest

from megatron_focus.config.loading import load_config
from megatron_focus.planning.chunks import chunks_of
from megatron_focus.planning.estimate import estimate
from megatron_focus.planning.hardware import GIB, GPUS, Cluster
from megatron_focus.planning.parameters import chunk_parameters
from megatron_focus.planning.workload import assumed_sample, workload
from megatron_focus.train import main

FOLDER = Path(__file__).parents[3] / "examples" / "backbones"
MODELS = sorted(FOLDER.glob("*/model.yaml"))
PRETRAIN = sorted(FOLDER.glob("*/pretrain.yaml"))
LAYOUTS = sorted(FOLDER.glob("*/*gpus.yaml")) + PRETRAIN
PUBLISHED = {
    "vicuna-7b": 6.738e9,
    "vicuna-13b": 13.016e9,
    "llama-3-8b": 8.030e9,
    "llama-3-70b": 70.554e9,
    "qwen2.5-7b": 7.616e9,
    "qwen2.5-14b": 14.770e9,
    "qwen2.5-32b": 32.764e9,
    "qwen2.5-72b": 72.706e9,
    "mistral-7b": 7.242e9,
}
"""Parameters of the language models, from the sizes of their published weights."""


def name(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def gpus(file: Path) -> int:
    return 64 if file in PRETRAIN else int(file.stem.removesuffix("gpus"))


def test_all_backbones_are_there():
    assert {file.parent.name for file in MODELS} == {file.parent.name for file in PRETRAIN} == set(PUBLISHED)
    assert {64, 512} <= {gpus(file) for file in LAYOUTS if file.parent.name == "llama-3-70b"}


@pytest.mark.parametrize("file", MODELS, ids=name)
def test_the_language_model_has_the_published_size(file):
    model = load_config(file).model
    (chunk,) = chunks_of([model.language.num_layers])
    parameters = sum(chunk_parameters(model, load_config(file).parallel, chunk)["language_model"])
    assert parameters == pytest.approx(PUBLISHED[file.parent.name], rel=1e-3)


@pytest.mark.parametrize("file", MODELS, ids=name)
def test_drop_layers_are_scaled_with_the_depth(file):
    model = load_config(file).model
    quarter = model.language.num_layers // 4
    assert model.text_sampler.layer == quarter and model.text_sampler.layer_range == [quarter, 3 * quarter]


@pytest.mark.parametrize("file", PRETRAIN, ids=name)
def test_stage_2_begins_where_stage_1_ends(file):
    first, second = load_config(file), load_config(file.parent / "64gpus.yaml")
    assert second.checkpoint.pretrained == first.checkpoint.save != second.checkpoint.save
    assert first.checkpoint.pretrained == f"imported/{file.parent.name}"
    assert first.optimizer.freeze == ["vision_tower", "language_model"] and second.optimizer.freeze == []
    assert second.checkpoint.new_modules == ["vision_sampler"] and not first.model.vision_sampler.enabled
    assert first.data.path != second.data.path and first.data.tokenizer == second.data.tokenizer
    assert first.data.chat_template == "plain" != second.data.chat_template
    assert (first.model.vision, first.model.language) == (second.model.vision, second.model.language)


def test_models_share_no_folder():
    configs = [load_config(file.parent / stage) for file in PRETRAIN for stage in ("pretrain.yaml", "64gpus.yaml")]
    folders = [each.data.path for each in configs] + [each.checkpoint.save for each in configs]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("file", [*MODELS, *LAYOUTS], ids=name)
def test_the_file_passes_the_trainers_own_check(file):
    # Transformer Engine is not needed for what is checked here.
    local = ["model.transformer_impl=local", "data.path=prepared", "data.tokenizer=tokenizer"]
    world = gpus(file) if file in LAYOUTS else 1
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([str(file), *local, "--dry-run", "--world-size", str(world)]) == 0


@pytest.mark.parametrize("file", LAYOUTS, ids=name)
def test_the_plan_confirms_that_the_layout_fits(file):
    config = load_config(file)
    text = (60, 40, 0) if file in PRETRAIN else (200, 100, 80)
    sample = assumed_sample(480, 640, *text, config.model.image)
    load = workload(config, [sample], 0.435, 0.75, "assumed")
    found = estimate(config, load, Cluster(gpu=GPUS["a100-80gb"], gpus=gpus(file)))
    # A tenth is left free, as Transformer Engine's activations were never measured.
    assert found.memory[found.fullest].total <= 72 * GIB
    assert config.data.rows_multiple_of % found.data_parallel_size == 0
    assert found.time.uneven < 0.2 * found.time.total
