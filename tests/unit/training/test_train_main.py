"""The command line of the trainer: what it refuses and what it prints."""

import pytest
import torch

from megatron_focus.config.loading import load_config
from megatron_focus.parallel import initialize
from megatron_focus.train import main

DATA = ["data.path=shards", "data.tokenizer=tokenizer"]


def config_file(tmp_path, text="training: {train_iters: 3}\n"):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


def test_dry_run_prints_the_resolved_configuration(tmp_path, capsys):
    assert main([config_file(tmp_path), *DATA, "optimizer.lr=3e-4", "--dry-run", "--world-size", "8"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    again = load_config(printed)
    assert (again.training.train_iters, again.optimizer.lr, again.data.path) == (3, 3e-4, "shards")


def test_dry_run_says_what_the_layout_needs(tmp_path, capsys):
    uneven = ["training.global_batch_size=32", "data.rows_multiple_of=3"]
    assert main([config_file(tmp_path), *DATA, *uneven, "--dry-run", "--world-size", "8"]) == 0
    said = capsys.readouterr()
    first, second = said.out.splitlines()[:2]
    assert first.startswith(
        "# 8 ranks: TP 1 x PP 1 x DP 8, no recomputation; 32 samples a step, packed into a multiple"
    )
    assert second.startswith("# the fullest rank needs about ")
    assert said.err.startswith("warning: data.rows_multiple_of=3: rows do not divide evenly over 8 data-parallel ranks")
    assert "set data.rows_multiple_of=8" in said.err
    assert main([config_file(tmp_path), *DATA, "data.rows_multiple_of=8", "--dry-run", "--world-size", "8"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.train_iter=3", *DATA], "train_iter"),
        (["parallel.tensor_model_parallel_size=2", *DATA], "start a multiple of 2"),
        ([], "data.path is not set"),
    ],
)
def test_what_cannot_run_ends_with_a_sentence_and_exit_code_2(tmp_path, capsys, overrides, message):
    assert main([config_file(tmp_path), *overrides]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_named(capsys):
    assert main(["nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_world_size_is_for_dry_runs(tmp_path):
    with pytest.raises(SystemExit):
        main([config_file(tmp_path), "--world-size", "8"])


@pytest.mark.parametrize("deterministic", [True, False])
def test_determinism_is_asked_for_before_anything_starts(tmp_path, monkeypatch, capsys, deterministic):
    def started(*args):
        raise ValueError(f"deterministic: {torch.are_deterministic_algorithms_enabled()}")

    monkeypatch.setattr(initialize, "initialize", started)
    for name in ("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"):
        monkeypatch.setenv(name, "")  # to be put back afterwards
        monkeypatch.delenv(name)
    assert main([config_file(tmp_path), *DATA, f"training.deterministic={deterministic}"]) == 2
    torch.use_deterministic_algorithms(False)
    assert f"error: deterministic: {deterministic}\n" in capsys.readouterr().err
