"""The scripts that run one tool: arrays number their tasks from 0, and an export waits for the training."""

import json
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT

pytestmark = pytest.mark.slow

SHOW_ARGUMENTS = """import json, os, sys
name = f"task-{os.environ['SLURM_ARRAY_TASK_ID']}.json"
json.dump(sys.argv[1:], open(name, "w"))
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose tools write down their arguments."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").touch()
    for tool in ("evaluate", "prepare_data"):
        (tmp_path / "tools" / f"{tool}.py").write_text(SHOW_ARGUMENTS)
    return tmp_path


@pytest.mark.parametrize("script", ["evaluate_array", "prepare_data_array"])
def test_array_tasks_are_counted_from_0(cluster, checkout, script):
    folder = checkout / "job"
    cluster.submit(
        folder,
        f"slurm/{script}.sh",
        "some words",
        "--output=x",
        options=("--array=3-5",),
        MEGATRON_FOCUS_ROOT=str(checkout),
    )
    for task in (3, 4, 5):
        told = json.loads(_written(folder / f"task-{task}.json", within=60))
        assert told == ["some words", "--output=x", "--task", str(task - 3), "--tasks", "3"]


def _written(file: Path, within: float) -> str:
    """What a task has written. An array's state is that of its last task, and says nothing of the others."""
    deadline = time.monotonic() + within
    while not (file.exists() and file.read_text().endswith("]")):
        assert time.monotonic() < deadline, f"{file} is not there after {within} s"
        time.sleep(0.2)
    return file.read_text()


def test_array_with_gaps_is_refused(cluster, checkout):
    job = cluster.submit(
        checkout / "job",
        "slurm/prepare_data_array.sh",
        options=("--array=1,3", "--output=gaps.log"),
        MEGATRON_FOCUS_ROOT=str(checkout),
    )
    log = checkout / "job" / "gaps.log"
    job.wait_for(lambda: log.exists() and "not consecutive; use one such as --array=0-1" in log.read_text(), "refusal")
    assert not list((checkout / "job").glob("task-*.json"))


@pytest.mark.slurm_faults
def test_export_waits_for_the_training(cluster, undisturbed):
    job = cluster.submit(
        undisturbed.folder,
        "slurm/export_hf.sh",
        "--checkpoint",
        "checkpoints",
        "--output",
        "release",
        options=(f"--dependency=afterok:{undisturbed.id}", "--kill-on-invalid-dep=yes"),
    )
    assert job.wait() == "COMPLETED", job.log
    assert "wrote release" in job.log
    assert (undisturbed.folder / "release" / "config.json").is_file()
