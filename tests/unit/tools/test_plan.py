"""``tools/plan.py`` from its command line."""

import importlib.util
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import load_tokenizer, train_tokenizer
from data_pipeline.preparation.prepare import prepare
from data_pipeline.sources.llava_json import LlavaJson
from megatron_focus.config.loading import load_config
from megatron_focus.config.validation import validate
from tools.plan import main

SMALL = """\
model:
  language:
    num_layers: 8
    hidden_size: 1024
    ffn_hidden_size: 4096
    num_attention_heads: 16
    num_query_groups: 8
  text_sampler:
    layer: 2
    layer_range: [2, 6]
"""
ON = ["--gpus", "4", "--gpu", "a100-80gb", "--nodes-of", "2"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(SMALL)
    return file


def test_a_plan_says_memory_time_and_why_others_lose(config, capsys):
    assert main([str(config), *ON, "--top", "2"]) == 0
    said = capsys.readouterr().out
    assert "The configuration's own layout: TP 1 x PP 1 x DP 4, no recomputation" in said
    assert "stage 0" in said and "MFU" in said and "Assumed, not measured" in said
    assert "tensor-parallel messages across nodes" in said
    assert said.splitlines()[-1].startswith(f"{config} fits on 4 a100-80gb")


def test_overrides_change_the_plan(config, capsys):
    main([str(config), "parallel.pipeline_model_parallel_size=2", *ON])
    assert "own layout: TP 1 x PP 2 x DP 2" in capsys.readouterr().out


def test_a_layout_that_cannot_run_is_replaced_by_those_that_can(config, tmp_path, capsys):
    file = tmp_path / "plan.json"
    assert main([str(config), "parallel.tensor_model_parallel_size=8", *ON, "--json", str(file)]) == 1
    said = capsys.readouterr().out
    refusal = "With its own layout, the configuration cannot run:\n  - 4 ranks cannot be divided into parallel.tensor"
    assert refusal in said
    assert "The best layout: TP 1 x PP 1 x DP 4" in said and "Best layouts:" in said
    assert f"{config} has a layout that cannot run on 4 a100-80gb; the best of " in said.splitlines()[-1]
    plan = json.loads(file.read_text())
    assert plan["own"] is None and plan["ranked"]


def test_what_does_not_fit_is_exit_code_1_with_what_would(config, capsys):
    assert main([str(config), "model.language.num_layers=64", "model.language.hidden_size=8192", *ON]) == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said and "GPUs of the same kind: TP" in said
    assert "does not fit: stage" in said and "does not fit on 4 a100-80gb; no layout fits" in said


def test_the_best_layout_can_be_written_and_runs(config, tmp_path, capsys):
    written = tmp_path / "runs" / "best.yaml"
    written.parent.mkdir()
    figures = tmp_path / "plan.json"
    arguments = [str(config), "training.global_batch_size=16", *ON]
    assert main([*arguments, "--json", str(figures), "--write-config", str(written)]) == 0
    best = load_config(written)
    validate(best, 4)
    assert best.training.global_batch_size == 16 and best.model.language.num_layers == 8
    plan = json.loads(figures.read_text())
    assert plan["ranked"][0]["fits"] and plan["own"]["time"]["total"] >= plan["ranked"][0]["time"]["total"]
    settings = plan["ranked"][0]["overrides"]
    assert settings["parallel.tensor_model_parallel_size"] == best.parallel.tensor_model_parallel_size
    assert OmegaConf.load(written).base == "../config.yaml"
    assert main([*arguments, "--write-config", str(written)]) == 2
    assert f"{written} exists" in capsys.readouterr().err


def test_nothing_is_written_where_no_layout_fits(config, tmp_path, capsys):
    written = tmp_path / "best.yaml"
    huge = ["model.language.num_layers=64", "model.language.hidden_size=8192"]
    assert main([str(config), *huge, *ON, "--write-config", str(written)]) == 2
    assert "no layout fits" in capsys.readouterr().err and not written.exists()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["parallel.context_parallel_size=2"], "over ranks, but each sample drops other tokens"),
        (["model.wrong=1"], "wrong"),
        (["--sequence-lengths", "manifest"], "data.path is not set"),
        (["data.max_sequence_length=1000"], "2540 tokens, more than data.max_sequence_length=1000"),
    ],
)
def test_bad_input_is_exit_code_2_with_a_sentence(config, extra, words, capsys):
    assert main([str(config), *extra, *ON]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--gpus", "0"], ["--kept-text", "1.5"], ["--gpu", "abacus"]])
def test_bad_options_are_exit_code_2(config, option):
    with pytest.raises(SystemExit) as ended:
        main([str(config), *ON, *option])
    assert ended.value.code == 2


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is not None, reason="Transformer Engine is installed"
)
def test_what_is_missing_here_is_said_and_does_not_stop_the_plan(config, capsys):
    assert main([str(config), "model.transformer_impl=transformer_engine", *ON]) == 0
    assert "Transformer Engine is not installed" in capsys.readouterr().out


def test_lengths_of_a_prepared_data_set_are_used(config, tmp_path, capsys):
    picture = tmp_path / "images" / "one.png"
    picture.parent.mkdir()
    Image.new("RGB", (640, 480)).save(picture)
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Nothing but black."}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "one", "image": "one.png", "conversations": turns}]))
    train_tokenizer(["What is it? Nothing but black."] * 20, 300, tmp_path / "tokenizer")
    prepared = tmp_path / "prepared"
    prepare(
        [LlavaJson(tmp_path / "data.json", picture.parent, "mine")],
        prepared,
        renderer=Renderer(load_tokenizer(tmp_path / "tokenizer"), "llama3"),
        progress=False,
    )
    assert main([str(config), f"data.path={prepared}", "--sequence-lengths", "manifest", *ON]) == 0
    said = capsys.readouterr().out
    assert f"samples of {prepared}" in said
    assert "30 tiles" in said  # a 640 x 480 image has 5, and 2,340 visual tokens: 6 such make the worst row


def test_memory_is_counted_by_the_attention_that_would_be_taken(config, tmp_path, capsys):
    def planned(name, *arguments):
        code = main(
            [str(config), "model.transformer_impl=transformer_engine", *arguments, "--json", str(tmp_path / name)]
        )
        found = json.loads((tmp_path / name).read_text())
        return (
            code,
            found["own"]["memory"][0]["activations"],
            found["workload"]["worst"]["layers"],
            capsys.readouterr().out,
        )

    a100, h100 = ["--gpus", "4", "--gpu", "a100-80gb"], ["--gpus", "4", "--gpu", "h100-80gb"]
    _, fused, layers, said = planned("flash", *a100)
    assert "attention: flash-attn's, which has to be installed beside the 'gpu' extra" in said
    code, unfused, _, said = planned("none", *a100, "--without-flash-attn")
    assert code == 1 and "attention: UNFUSED" in said
    assert "would be refused for its attention on 4 a100-80gb; and in every layout" in said
    # Two bf16 tensors of 16 heads' scores a layer, and their gradients of one.
    scores = [2 * 2 * 16 * layer["squares"] for layer in layers]
    assert sum(scores) <= unfused - fused <= sum(scores) + max(scores)
    _, on_h100, _, said = planned("h100", *h100, "--without-flash-attn")
    assert on_h100 == fused and "attention: cuDNN's" in said
    _, _, _, said = planned("local", "model.transformer_impl=local", *a100, "--without-flash-attn")
    assert "attention: torch's variable-length FlashAttention" in said
