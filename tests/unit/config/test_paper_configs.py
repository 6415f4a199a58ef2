"""Every file of examples/paper is valid where it is meant to run, and holds the value that makes the row what it is."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.sources import (
    ai2d,
    allava_vflan,
    chartqa,
    docvqa,
    geoqa_plus,
    llava_pretrain,
    sharegpt4v,
    synthdog_en,
)
from megatron_focus.config.loading import load_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.config.validation import validate, validate_data

PAPER = Path(__file__).parents[3] / "examples/paper"
FILES = sorted(p.relative_to(PAPER).as_posix() for p in PAPER.rglob("*.yaml") if p.name != "base.yaml")
VISION, TEXT = "model.vision_sampler.", "model.text_sampler."
BASELINE = {VISION + "enabled": False, TEXT + "mode": "off"}
ONLY_VISION = {VISION + "enabled": True, VISION + "method": "learned", TEXT + "mode": "off"}
ONLY_TEXT = {VISION + "enabled": False, TEXT + "mode": "random", TEXT + "layer_range": [8, 24]}
DEFAULT_VISION = ONLY_VISION | {
    VISION + "window": 4,
    VISION + "scales": ["1x1", "2x2", "4x4"],
    VISION + "balance_loss_coeff": 0.1,
    VISION + "balance_weights": None,
}
DEFAULT_TEXT = ONLY_TEXT | {TEXT + "layer": 8, TEXT + "gamma": 0.85}

SEVEN = ["1x1", "2x1", "1x2", "2x2", "4x2", "2x4", "4x4"]
ROWS = {
    "table2-baseline": BASELINE,
    "table2-vision": DEFAULT_VISION,
    "table2-text": DEFAULT_TEXT,
    "table2-both": DEFAULT_VISION | DEFAULT_TEXT | {VISION + "enabled": True},
    "table3-baseline": BASELINE,
    "table3-3branch": DEFAULT_VISION,
    "table3-7branch": DEFAULT_VISION | {VISION + "scales": SEVEN},
    "table4-baseline": BASELINE,
    "table4-1x1": ONLY_VISION | {VISION + "window": 1, VISION + "scales": ["1x1", "discard"]},
    "table4-2x2": ONLY_VISION | {VISION + "window": 2, VISION + "scales": ["1x1", "2x2"]},
    "table4-4x4": DEFAULT_VISION,
    "table4-8x8": DEFAULT_VISION | {VISION + "window": 8},
    "table4-12x12": DEFAULT_VISION | {VISION + "window": 12},
    "table5-without": DEFAULT_VISION | {VISION + "balance_loss_coeff": 0.0},
    "table5-weight0.01": DEFAULT_VISION | {VISION + "balance_loss_coeff": 0.01},
    "table5-weight0.1": DEFAULT_VISION,
    "table5-weight0.5": DEFAULT_VISION | {VISION + "balance_loss_coeff": 0.5},
    "table6-baseline": BASELINE,
    "table6-direct": BASELINE | {TEXT + "mode": "direct", TEXT + "gamma": 0.9, TEXT + "layer": 8},
    "table6-train": DEFAULT_TEXT | {TEXT + "mode": "train"},
    "table6-random": DEFAULT_TEXT,
    "table7-top100": BASELINE,
    **{
        f"table7-top{share}": {
            VISION + "enabled": True,
            VISION + "method": "heuristic",
            VISION + "heuristic_keep": share / 100,
            TEXT + "mode": "off",
        }
        for share in (80, 60, 40)
    },
    "table7-focusllava": DEFAULT_VISION,
    "table8-baseline": BASELINE,
    "table8-1.0-1.0-1.0": DEFAULT_VISION,
    "table8-1.1-1.0-0.9": DEFAULT_VISION | {VISION + "balance_weights": [1.1, 1.0, 0.9]},
    "table8-0.9-1.0-1.1": DEFAULT_VISION | {VISION + "balance_weights": [0.9, 1.0, 1.1]},
    **{f"figure2-layer{n:02}": DEFAULT_TEXT | {TEXT + "layer": n} for n in (4, 8, 12, 16, 20, 24, 28, 31)},
}


@cache
def load(name: str) -> RunConfig:
    """With layers that need no GPU; tests only read it."""
    return load_config(PAPER / name, ["model.transformer_impl=local"])


def value(config: RunConfig, key: str) -> Any:
    """The field under a dotted name."""
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_valid_on_8_nodes_and_on_one(name):
    config = load(name)
    validate_data(config)
    for world_size in (64, 8):
        validate(config, world_size)
    paths = (config.data.path, config.data.tokenizer, config.checkpoint.save, config.checkpoint.pretrained)
    assert not any(Path(path).is_absolute() for path in paths)


def test_every_row_has_a_file_and_every_file_a_row():
    assert {f"ablations/{name}.yaml" for name in ROWS} == {name for name in FILES if name.startswith("ablations/")}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_the_table_says(name):
    config = load(f"ablations/{name}.yaml")
    assert {key: value(config, key) for key in ROWS[name]} == ROWS[name]
    assert (config.data.path, config.training.train_iters) == ("prepared/finetune-200k", -(-200_000 // 128))
    assert (config.training.global_batch_size, config.optimizer.lr) == (128, 1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_starts_from_stage_1_and_has_a_folder_of_its_own_if_it_is_trained_on_its_own(name):
    config = load(f"ablations/{name}.yaml")
    sampler = config.model.vision_sampler
    learned = sampler.enabled and sampler.method == "learned"
    assert config.checkpoint.pretrained == load("pretrain.yaml").checkpoint.save
    assert config.checkpoint.new_modules == (["vision_sampler"] if learned else [])
    # Rows that share a folder share the training: they may differ in what inference alone reads.
    for other in ROWS:
        theirs = load(f"ablations/{other}.yaml")
        same_folder = config.checkpoint.save == theirs.checkpoint.save
        assert same_folder == (trained_as(config) == trained_as(theirs)), other


def trained_as(config: RunConfig) -> dict:
    """What decides the weights that come out."""
    settings = asdict(config)
    text = settings["model"]["text_sampler"]
    if text["mode"] in ("off", "direct"):
        settings["model"]["text_sampler"] = "no token is dropped in training"
    elif text["mode"] == "random":
        settings["model"]["text_sampler"] = {"ranges": (text["layer_range"], text["gamma_range"])}
    return {key: settings[key] for key in ("model", "data", "optimizer", "training")}


@pytest.mark.parametrize("name", ["pretrain.yaml", "finetune.yaml", "ablations/table7-top40.yaml"])
def test_the_layers_are_those_for_gpus(name):
    assert load_config(PAPER / name).model.transformer_impl == "transformer_engine"


def test_stage_1():
    config = load("pretrain.yaml")
    assert set(config.optimizer.freeze) == {"vision_tower", "language_model"}
    assert (config.optimizer.lr, config.training.global_batch_size) == (1e-3, 256)
    assert config.training.train_iters == -(-llava_pretrain.PUBLISHED // 256)
    assert (config.data.chat_template, config.data.path) == ("plain", "prepared/llava-pretrain")
    assert not config.model.vision_sampler.enabled and config.model.text_sampler.mode == "off"


def test_stage_2():
    config = load("finetune.yaml")
    assert {key: value(config, key) for key in ROWS["table2-both"]} == ROWS["table2-both"]
    assert (config.optimizer.lr, config.optimizer.module_lr) == (1e-5, {"vision_tower": 2e-6})
    assert not config.optimizer.freeze
    whole = [m.PUBLISHED for m in (sharegpt4v, allava_vflan, synthdog_en, chartqa)]
    dvqa = 10_000  # about, of its 200,000 charts
    samples = sum([*whole, docvqa.PUBLISHED_LLAVA, ai2d.PUBLISHED["train"], geoqa_plus.PUBLISHED_LLAVA, dvqa])
    assert config.training.train_iters == -(-samples // config.training.global_batch_size)
    plain = load("finetune-llava-next.yaml")
    assert {key: value(plain, key) for key in BASELINE} == BASELINE
    assert plain.optimizer == config.optimizer and plain.training == config.training


def test_the_readme_names_every_file():
    text = (PAPER / "README.md").read_text()
    missing = [name for name in FILES if f"`{Path(name).name}`" not in text]
    assert not missing
