"""The export tool on damaged checkpoints: what is not what was written does not become a release."""

import shutil

import pytest
import torch

from megatron_focus.checkpoint.checksums import SUMS_FILE, write_sums
from megatron_focus.conversion.checkpoint_reader import read_model
from tests.unit.conversion import hf_folders
from tests.unit.conversion.damage import flip_byte
from tools.export_hf import main
from tools.import_hf import main as import_hf


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    model = hf_folders.write_llava_next(folder / "llava")
    arguments = ["--model", str(model), "--output", str(folder / "run"), "--quiet", *hf_folders.OVERRIDES]
    assert import_hf(arguments) == 0
    return folder / "run"


@pytest.fixture
def checkpoint(imported, tmp_path):
    """With sums, as training writes them."""
    shutil.copytree(imported, tmp_path / "run")
    folder = tmp_path / "run" / "iter_0000000"
    write_sums(folder, [path.name for path in folder.iterdir()], SUMS_FILE)
    return folder


def largest_file(checkpoint):
    return max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)


def export(checkpoint):
    return main(["--checkpoint", str(checkpoint.parent), "--output", str(checkpoint.parents[1] / "out"), "--quiet"])


def refused(checkpoint, capsys, *words):
    """Exit code, one clear sentence, and nothing left behind."""
    assert export(checkpoint) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    for word in words:
        assert str(word) in message
    assert [path.name for path in checkpoint.parents[1].iterdir()] == ["run"]


def test_a_flipped_bit_in_a_tensor(checkpoint, capsys):
    before, path = read_model(checkpoint), largest_file(checkpoint)
    flip_byte(path)
    refused(checkpoint, capsys, checkpoint, path.name, "is not what was written")
    # PyTorch does not notice it.
    (checkpoint / SUMS_FILE).unlink()
    after = read_model(checkpoint)
    assert sum(not torch.equal(tensor, after[name]) for name, tensor in before.items()) == 1


def test_every_other_file_is_compared_too(checkpoint, capsys):
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".distcp" or path.name == SUMS_FILE:
            continue
        content = path.read_bytes()
        flip_byte(path)
        refused(checkpoint, capsys, path.name, "is not what was written")
        path.write_bytes(content)
    largest_file(checkpoint).unlink()
    refused(checkpoint, capsys, "is not what was written")


def test_whole_checkpoints_with_and_without_sums(checkpoint, capsys):
    assert export(checkpoint) == 0
    shutil.rmtree(checkpoint.parents[1] / "out")
    (checkpoint / SUMS_FILE).unlink()
    assert export(checkpoint) == 0
    assert "M parameters" in capsys.readouterr().out
