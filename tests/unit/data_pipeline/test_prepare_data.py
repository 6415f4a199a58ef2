import subprocess
import sys

import pytest

from data_pipeline.manifest import Manifest
from tools.prepare_data import main, parse_arguments


@pytest.fixture
def arguments(llava_folder, tokenizer_folder, tmp_path):
    json, images = llava_folder / "data.json", llava_folder / "images"
    return [
        *("--json", str(json), "--images", str(images), "--source", "llava"),
        *("--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "out")),
    ]


def test_writes_a_data_set(arguments, tmp_path, capsys):
    assert main([*arguments, "--samples-per-shard", "10"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("wrote 24 samples with 24 images and ") and f"in 3 shards to {tmp_path}/out" in out
    assert len(Manifest.load(tmp_path / "out")) == 24


def test_failure_is_one_line_and_exit_code_1(arguments, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert main(arguments) == 1
    assert f"error: {tmp_path}/out: exists already" in capsys.readouterr().err


def test_plain_template_leaves_text_only_samples_out(arguments, tmp_path, capsys):
    assert main([*arguments, "--template", "plain", "--on-bad-sample", "skip"]) == 1
    assert "template plain is for images with one caption, not 4 turns" in capsys.readouterr().err


def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments([*arguments, "--samples-per-shard", "0"])
    assert stop.value.code == 2
    assert "argument --samples-per-shard: must be at least 1, not 0" in capsys.readouterr().err


def test_help_shows_an_example():
    done = subprocess.run(
        [sys.executable, "-m", "tools.prepare_data", "--help"], capture_output=True, text=True, check=True
    )
    assert "example:" in done.stdout and "python tools/prepare_data.py --json" in done.stdout
