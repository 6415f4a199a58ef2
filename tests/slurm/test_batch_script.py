"""What the batch script does with the ways in which a run can end, on a real Slurm; the trainer is a stand-in."""

import os
import shutil
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT
from tests.slurm.conftest import fill

pytestmark = pytest.mark.slow

PREFLIGHT = """import os, sys, time
refused = "refused" in sys.argv
if os.environ["RANK"] == "0":
    slow = f"preflight: 1 bad node: node2: less than {' '.join(sys.argv[1:-1])}"
    print("preflight: the data is missing" if refused else slow, flush=True)
    time.sleep(30 * refused)  # ended by srun, as the others have failed before it
sys.exit(2 if refused else 1)
"""
TWO = ("--nodes=2", "--gpus-per-node=2")


@pytest.fixture(scope="module")
def submit(cluster, tmp_path_factory):
    """``submit(name, argument, ..., options=..., NAME=VALUE)``: a job of two nodes with two GPUs each."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "slurm").symlink_to(ROOT / "slurm")
    (root / "megatron_focus").mkdir()
    (root / "megatron_focus" / "__init__.py").touch()
    shutil.copy(Path(__file__).parent / "stand_in" / "train.py", root / "megatron_focus")
    (root / "tools").mkdir()
    (root / "tools" / "__init__.py").touch()
    (root / "tools" / "preflight.py").write_text(PREFLIGHT)

    def submit(name, *arguments, config=("run.yaml",), options=(), **variables):
        folder = tmp_path_factory.getbasetemp() / "jobs" / name
        return cluster.submit(
            folder,
            "slurm/finetune_8node.sh",
            *config,
            *arguments,
            options=(*TWO, f"--job-name={name}", *options),
            MEGATRON_FOCUS_ROOT=str(root),
            **variables,
        )

    return submit


@pytest.fixture(scope="module")
def jobs(submit):
    """Submitted together, so that they run beside one another."""
    return {
        "no progress": submit("no-progress", "fail_at=1", MAX_FAILURES="2"),
        "progress": submit("progress", "fail_at=4", "steps=8", MAX_FAILURES="2"),
        "bad node": submit("bad-node", PREFLIGHT="1", PREFLIGHT_ARGS="--min-bandwidth 40", MAX_FAILURES="1"),
        "exit 2": submit("exit-2", "fail_at=1", "code=2"),
        "refused": submit("refused", "refused", PREFLIGHT="1"),
    }


@pytest.fixture(scope="module")
def chain(submit):
    """Three jobs of one name, of which the first runs into its time limit."""
    first = submit("chain", "steps=35", options=("--time=1", "--signal=B:USR1@55", "--no-requeue"))
    return [first, *(submit("chain", "steps=35", options=("--dependency=singleton",)) for _ in range(2))]


def test_crash_without_progress_is_tried_again_up_to_the_limit(jobs):
    job = jobs["no progress"]
    assert job.wait() == "FAILED"
    assert (job.exit_code, job.restarts) == ("1:0", 1)
    first, last = job.log.split(f"{job.id}.1: 2 nodes")
    assert "start 1 of 2 without a new checkpoint; the job goes back into the queue" in first
    for life in (first, last):
        assert "RuntimeError: the failure of step 1" in life, "the first failing rank's words are not in the job's log"
    reason, end = last.splitlines()[-1].split(": Exited with exit code 1; ")
    assert "rank failed: rank 2 on " in reason
    assert end == "2 starts in a row without a new checkpoint, so the job ends here"


def test_crash_after_progress_is_tried_again(jobs):
    job = jobs["progress"]
    assert job.wait() == "COMPLETED"
    assert job.restarts == 1
    assert "the newest checkpoint is of step 3; the job goes back into the queue" in job.log
    assert "continuing at step 3" in job.log.split(f"{job.id}.1: 2 nodes")[1]


def test_refused_input_is_not_tried_again(jobs):
    job = jobs["exit 2"]
    assert job.wait() == "FAILED"
    assert (job.exit_code, job.restarts) == ("2:0", 0)
    assert job.log.splitlines()[-1].endswith("Exited with exit code 2; not tried again")


def test_bad_node_is_named_before_the_training(jobs):
    job = jobs["bad node"]
    assert job.wait() == "FAILED"
    assert job.exit_code == "1:0"
    assert (
        "preflight: 1 bad node: node2: less than --min-bandwidth 40 (Exited with exit code 1)"
        in job.log.splitlines()[-1]
    )
    assert f"scontrol update jobid={job.id} excnodelist=NODE" in job.log
    assert not list(job.logs.glob("rank-*.log")), "the training was started"


def test_what_preflight_refuses_is_not_tried_again(jobs):
    job = jobs["refused"]
    assert job.wait() == "FAILED"
    assert (job.exit_code, job.restarts) == ("2:0", 0)
    assert job.log.splitlines()[-1].endswith(
        "preflight: the data is missing (Exited with exit code 2); not tried again"
    )


@pytest.mark.slurm_faults
def test_time_limit_saves_and_the_chained_job_continues(chain):
    first, second, third = chain
    for job in (first, second, third):
        job.wait()
    # It ended without having finished: a job that depends on its success must not start.
    assert (first.state, first.restarts) == ("FAILED", 0)
    assert "SIGUSR1: asking the ranks to write a checkpoint" in first.log
    stopped = int(first.log.split('"iteration": ')[1].split(",")[0])
    assert f"continuing at step {stopped}" in second.log
    assert (second.state, third.state) == ("COMPLETED", "COMPLETED")
    assert "step 35" in second.log
    assert "step " not in third.log.split("continuing at step 35")[1].split("finished")[0]


@pytest.mark.slurm_faults
def test_cancelled_job_saves_and_does_not_come_back(submit, cluster):
    job = submit("cancelled", "steps=100")
    job.wait_for(lambda: "step 2" in job.log, "step 2")
    cluster.ask("scancel", job.id)
    assert job.wait() == "CANCELLED"
    job.wait_for(lambda: "Slurm is ending the job" in job.log, "last words")
    assert '"status": "interrupted"' in job.log
    assert (job.state, job.restarts) == ("CANCELLED", 0)


@pytest.mark.slurm_faults
def test_signal_during_start_up_is_not_lost(submit, cluster):
    job = submit("early", "steps=8", "slow_start=4")
    job.wait_for(lambda: len(list(job.folder.glob("logs/*/rank-*.log"))) == 4, "ranks")
    cluster.ask("scancel", "--batch", "--signal=USR1", job.id)
    assert job.wait() == "COMPLETED"
    assert job.restarts == 1
    assert "interrupted: " in job.log and "failed" not in job.log


@pytest.mark.slurm_faults
def test_time_limit_without_a_new_checkpoint_counts_as_a_failure(submit, cluster):
    """Or the job would come back for ever."""
    job = submit("too-short", "steps=100", "unsaved=", MAX_FAILURES="1")
    job.wait_for(lambda: "step 1" in job.log, "step 1")
    cluster.ask("scancel", "--batch", "--signal=USR1", job.id)
    assert job.wait() == "FAILED"
    assert job.restarts == 0
    assert job.log.splitlines()[-1].endswith("1 starts in a row without a new checkpoint, so the job ends here")


def test_full_disk_under_the_logs_does_not_hide_failures(submit, mounted_disk):
    filler = fill(mounted_disk)
    try:
        job = submit("full-logs", "steps=3", MAX_FAILURES="2", MEGATRON_FOCUS_LOGS=str(mounted_disk / "logs"))
        assert job.wait() == "FAILED"
    finally:
        filler.unlink()
    assert (job.exit_code, job.restarts) == ("1:0", 1)
    assert job.log.splitlines()[-1].endswith("2 starts in a row without a new checkpoint, so the job ends here")


def test_second_job_with_the_same_folder_is_refused(submit):
    first = submit("rivals", "steps=15")
    first.wait_for(lambda: "step 1" in first.log, "step 1")
    second = submit("rivals", "steps=15")
    assert second.wait() == "FAILED"
    assert (second.exit_code, second.restarts) == ("2:0", 0)
    assert f"job {first.id} runs, and saves into checkpoint.save=checkpoints: wait for it" in second.log
    assert first.wait() == "COMPLETED"


def test_an_environment_beside_an_image_is_refused(submit):
    job = submit("both", MEGATRON_FOCUS_IMAGE="image.sqsh", MEGATRON_FOCUS_VENV="/venv")
    assert job.wait() == "FAILED"
    assert (job.exit_code, job.restarts) == ("2:0", 0)
    assert "unset one of them" in job.log


def test_default_configuration_takes_settings(submit):
    job = submit("default", "steps=1", config=())
    assert job.wait() == "COMPLETED"
    assert "configuration: " in job.log and "/examples/paper/finetune.yaml steps=1" in job.log
    assert (ROOT / "examples" / "paper" / "finetune.yaml").is_file()


def test_container_flags(submit, tmp_path):
    image = {"MEGATRON_FOCUS_IMAGE": "image.sqsh", "MEGATRON_FOCUS_LOGS": str(tmp_path.parent / "other-logs")}
    job = submit("container", "steps=1", **image, MEGATRON_FOCUS_MOUNTS=f"{tmp_path}:/data")
    missing = submit("no-mount", "steps=1", MEGATRON_FOCUS_IMAGE="image.sqsh", MEGATRON_FOCUS_MOUNTS="/no/such:/data")
    assert job.wait() == "COMPLETED"
    # The mounts reached srun: a source that is not there is refused (by pyxis' stand-in here, by enroot elsewhere).
    missing.wait_for(lambda: "/no/such is missing" in missing.log, "refusal")
    missing.cluster.ask("scancel", missing.id)
    assert os.listdir(tmp_path) == []
