"""Every missing or damaged part of a run is named."""

import shutil

import pytest
import torch

from megatron_focus.config.loading import load_config
from megatron_focus.conversion.checkpoint_reader import CheckpointTensors
from megatron_focus.diagnosis import run_files
from megatron_focus.diagnosis.config_check import check_config
from megatron_focus.diagnosis.gpus import Gpu
from megatron_focus.diagnosis.run_files import inspect_run_files
from megatron_focus.diagnosis.state_size import checkpoint_bytes, least_gpu_bytes
from megatron_focus.models.builder import build_model
from tests.distributed.harness import run_ranks


@pytest.fixture
def spoil(run_yaml, tmp_path):
    """``spoil()`` is a configuration of a copy of the files, which a test can damage."""
    shutil.copytree(run_yaml.parent, tmp_path / "files")
    text = run_yaml.read_text().replace(str(run_yaml.parent), str(tmp_path / "files"))
    (tmp_path / "files" / "config.yaml").write_text(text)
    return tmp_path / "files"


def problems(folder, *overrides):
    found = inspect_run_files(load_config(folder / "config.yaml", overrides), count_parameters=True)
    return {finding.about: finding.message for finding in found.findings if finding.is_problem}


def test_all_in_order(run_yaml):
    files = inspect_run_files(load_config(run_yaml), count_parameters=True)
    assert files.findings == []
    assert files.identity.keys() == {"data.tokenizer", "data.path", "checkpoint.pretrained"}
    assert "4 samples in 2 shards" in files.described["data.path"]
    assert not (run_yaml.parent / "save").exists()  # looked at, not made


def test_shards(spoil):
    first, second = sorted((spoil / "shards").rglob("*.tar"))
    first.write_bytes(first.read_bytes()[:-512])
    assert f"{first.name}: " in problems(spoil)["data.path"]
    assert "dataset.json says" in problems(spoil)["data.path"]
    shutil.copy(second, first)
    second.unlink()
    assert "data.path" in problems(spoil)


@pytest.mark.parametrize(("error", "may_pass"), [(OSError("Stale file handle"), True), (PermissionError("no"), False)])
def test_storage_that_does_not_answer_may_do_so_later(spoil, monkeypatch, error, may_pass):
    def size(storage, name):
        raise error

    monkeypatch.setattr(run_files.Storage, "size", size)
    found = inspect_run_files(load_config(spoil / "config.yaml"), count_parameters=True).findings
    assert [(f.about, f.is_problem, f.may_pass) for f in found] == [("data.path", True, may_pass)]
    assert str(error) in found[0].message


def test_manifest_and_tokenizer(spoil):
    (spoil / "shards" / "manifest.parquet").write_bytes(b"PAR1")
    (spoil / "tokenizer" / "tokenizer.json").unlink()
    found = problems(spoil)
    assert "the file was changed" in found["data.path"]
    assert "no file tokenizer.json" in found["data.tokenizer"]
    assert found.keys() == {"data.path", "data.tokenizer"}


def test_vocabulary(spoil):
    assert (
        "more than model.language.vocab_size=128" in problems(spoil, "model.language.vocab_size=128")["data.tokenizer"]
    )


def test_pretrained(spoil):
    checkpoint = spoil / "pretrained" / "iter_0000000"
    (tensors,) = checkpoint.glob("*.distcp")
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-20])
    assert "is cut off" in problems(spoil)["checkpoint.pretrained"]
    tensors.unlink()
    assert f"{tensors.name} is missing" in problems(spoil)["checkpoint.pretrained"]
    tensors.write_bytes(content)
    (checkpoint / ".metadata").write_bytes(b"no pickle")
    assert "is damaged" in problems(spoil)["checkpoint.pretrained"]
    shutil.rmtree(checkpoint)
    assert "not a complete checkpoint" in problems(spoil)["checkpoint.pretrained"]


def test_a_run_that_continues_needs_no_pretrained_weights(spoil):
    """Like a job that is requeued after the weights of the stage before were deleted."""
    shutil.rmtree(spoil / "pretrained")
    (spoil / "save" / "run" / "iter_0000005.partial-a").mkdir(parents=True)
    assert problems(spoil).keys() == {"checkpoint.pretrained"}  # nothing complete to continue from
    (spoil / "save" / "run" / "iter_0000005").mkdir()
    files = inspect_run_files(load_config(spoil / "config.yaml"), count_parameters=True)
    (finding,) = files.findings
    assert (finding.about, finding.is_problem) == ("checkpoint.pretrained", False)
    assert finding.message.endswith(f"not read: the run continues from {spoil / 'save' / 'run' / 'iter_0000005'}")
    assert "checkpoint.pretrained" not in files.identity  # nor compared between nodes


def test_a_complete_checkpoint_can_be_read(run_yaml):
    """What counts as complete here is what the exporter reads."""
    tensors = CheckpointTensors(run_yaml.parent / "pretrained" / "iter_0000000")
    assert tensors.read("a").tolist() == list(range(1000))


def test_save_folder(spoil, monkeypatch):
    (spoil / "save").write_text("a file")
    assert "is a file" in problems(spoil)["checkpoint.save"]
    (spoil / "save").unlink()
    monkeypatch.setattr(run_files, "free_bytes", lambda path: 1000)
    assert "0 MiB free, one checkpoint takes" in problems(spoil)["checkpoint.save"]
    # A job under way is not ended by it: it is told so when it saves, and room may be made until then.
    newest = spoil / "save" / "run" / "iter_0000005"
    newest.mkdir(parents=True)
    files = inspect_run_files(load_config(spoil / "config.yaml"), count_parameters=True)
    messages = {finding.about: finding.message for finding in files.findings if not finding.is_problem}
    assert messages["checkpoint.save"].endswith(f"; the run continues from {newest}")


def _count(config):
    from megatron_focus.parallel.initialize import initialize

    initialize(config.parallel, 1)
    models = build_model(config.model, config.parallel, image_token_id=250, dtype=torch.float32)
    return sum(parameter.numel() for model in models for parameter in model.parameters())


def test_parameters_are_those_of_the_model(run_yaml):
    config = load_config(run_yaml)
    files = inspect_run_files(config, count_parameters=True)
    assert run_ranks(_count, 1, config) == [files.parameters]
    config.optimizer.freeze = ["vision_tower", "projector", "vision_sampler", "language_model"]
    assert inspect_run_files(config, count_parameters=True).frozen == files.parameters > files.frozen == 0


def test_sizes():
    """Adam: bf16 weights 2, fp32 master 4, two moments 8, fp32 gradients 4 bytes a parameter."""
    assert checkpoint_bytes(100, 0, "bf16") == 1400
    assert checkpoint_bytes(100, 90, "bf16") == 200 + 10 * 12
    assert checkpoint_bytes(100, 0, "fp32") == 1200
    assert least_gpu_bytes(100, "bf16", model_parallel=2, data_parallel=4, sharded=True) == 50 * (2 + 4 + 12 / 4)
    assert least_gpu_bytes(100, "fp32", model_parallel=1, data_parallel=4, sharded=False) == 100 * (4 + 4 + 8)


def gpu(**changes):
    plain = {"index": 0, "uuid": "GPU-a", "name": "A100", "memory_mib": 81920, "used_mib": 0, "driver": "550"}
    return Gpu(**plain | {"compute_capability": "8.0"} | changes)


def test_config_on_gpus(run_yaml):
    config = load_config(run_yaml)
    assert check_config(config, 1, [gpu()]).findings == []
    assert "2 GPUs here" in check_config(config, 2, [gpu(), gpu(index=1)]).described["ranks"]
    small = check_config(config, 1, [gpu(memory_mib=1)]).findings
    assert [finding.about for finding in small] == ["memory"]
    config.optimizer.fused_adam = "apex"
    (needs,) = check_config(config, 1, [gpu()]).findings
    assert "fused_adam=apex, but NVIDIA apex is not installed" in needs.message


def test_a_contradiction_does_not_hide_missing_files(run_yaml):
    config = load_config(run_yaml, ["parallel.tensor_model_parallel_size=3", "data.tokenizer=/nowhere"])
    found = check_config(config, None, []).findings
    assert [finding.about for finding in found if finding.is_problem] == ["configuration", "data.tokenizer"]
    assert "tensor_model_parallel_size=3" in found[0].message
