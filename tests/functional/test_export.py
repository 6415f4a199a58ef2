"""From a checkpoint of any layout to a release: the tensors are the same, and so are the answers' logits."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from megatron_focus.conversion.checkpoint_reader import read_model
from tests.distributed.harness import run_ranks
from tests.distributed.workers import start
from tests.functional.runs import train
from tests.unit.conversion.damage import flip_byte
from tools.export_hf import main as export


def whole_model(folder, config):
    """The tensors of a checkpoint as the exporter reads them."""
    start(config)
    return read_model(folder)


@pytest.mark.parametrize(
    ("world_size", "parallel"),
    [
        (4, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}),
        (2, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}),
    ],
)
def test_a_checkpoint_of_any_layout_becomes_the_same_release(run_config, tmp_path, world_size, parallel, capsys):
    """The same checkpoint, loaded at another layout and saved again, exports to the same files."""
    first = run_config(training={"train_iters": 1}, name="one")
    run_ranks(train, 1, first)
    again = run_config(parallel, {"train_iters": 1}, name="many", lr=1e-30, module_lr={})
    again.checkpoint.pretrained = first.checkpoint.save
    run_ranks(train, world_size, again)
    one, many = (
        run_ranks(_read, 1, str(tmp_path / name / "iter_0000001"), run_config(name="reader"))[0]
        for name in ("one", "many")
    )
    assert one.keys() == many.keys()
    # The step in between moves nothing but zeros, by its learning rate of 1e-30.
    assert all(torch.allclose(one[name], many[name], rtol=0.0, atol=1e-20) for name in one)
    assert "decoder.layers.3.mlp.linear_fc1.weight" in one
    assert "vision_tower.decoder.layers.1.input_layernorm.bias" in one


def _read(folder, config):
    return whole_model(Path(folder), config)


def _export(arguments):
    return export(arguments)


def test_the_export_tool(run_config, tmp_path):
    config = run_config(training={"train_iters": 1})
    run_ranks(train, 1, config)
    out = tmp_path / "release"
    arguments = ["--checkpoint", config.checkpoint.save, "--output", str(out)]
    assert run_ranks(_export, 1, arguments) == [0]
    model = AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True)
    assert model.config.text_config.num_hidden_layers == 4
    assert run_ranks(_export, 1, arguments) == [2]  # nothing is written over a release
    other = str(tmp_path / "other")
    assert run_ranks(_export, 1, ["--checkpoint", str(tmp_path), "--output", other]) == [2]
    # The middle of the largest file lies in a tensor; whose it is does not matter.
    largest = max(Path(config.checkpoint.save).glob("iter_*/*.distcp"), key=lambda path: path.stat().st_size)
    flip_byte(largest)
    assert run_ranks(_export, 1, ["--checkpoint", config.checkpoint.save, "--output", other]) == [2]
    assert not list(tmp_path.glob("*other*"))
