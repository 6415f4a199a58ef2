"""Faults under the real trainer on eight nodes; each ends with the losses of the undisturbed run.

Minutes each; asked for by ``-m slurm_faults``, which prints the table of slurm/README.md.
"""

import os
import signal

import pytest

from tests.slurm.conftest import EIGHT, LONG, fill

pytestmark = [pytest.mark.slow, pytest.mark.slurm_faults]

SCRIPT = "slurm/finetune_8node.sh"


@pytest.fixture
def finish(undisturbed, fault_table):
    """``finish(job, fault, happened, at=...)``: wait for the end and compare with the undisturbed run."""

    def finish(job, fault, happened, *, at, undisturbed=undisturbed, **lost):
        assert job.wait(within=900) == "COMPLETED", job.log[-6000:]
        assert job.steps == undisturbed.steps
        fault_table.add(fault, happened, at=at, job=job, undisturbed=undisturbed, **lost)

    return finish


def test_time_limit_with_chained_job(cluster, config, tmp_path, undisturbed_long, fault_table):
    chained = (*EIGHT, "--dependency=singleton")
    first = cluster.submit(
        tmp_path, SCRIPT, str(config), *LONG, options=(*EIGHT, "--no-requeue", "--signal=B:USR1@600")
    )
    second, third = (cluster.submit(tmp_path, SCRIPT, str(config), *LONG, options=chained) for _ in range(2))
    first.wait_for_step(2)
    minutes = 5 + int(first.cluster.ask("squeue", "-h", "-j", first.id, "-o", "%M").split(":")[0])
    cluster.ask("scontrol", "update", f"jobid={first.id}", f"timelimit={minutes}")
    first.wait()
    at = max(first.steps)
    assert 2 <= at < 160
    assert second.wait(within=900) == "COMPLETED"
    assert second.resumed_at == [at]
    assert first.steps | second.steps == undisturbed_long.steps
    fault_table.add(
        "time limit, with a chained job",
        "SIGUSR1 before the limit: checkpoint after the step; the next job of the name went on",
        at=at,
        job=second,
        undisturbed=undisturbed_long,
    )
    assert third.wait(within=900) == "COMPLETED"
    assert third.steps == {}, "a finished run was trained on"


def test_killed_rank(with_a_checkpoint, finish):
    job = with_a_checkpoint
    os.kill(job.rank_process(5), signal.SIGKILL)
    job.wait_for(lambda: job.restarts == 1, "requeue")
    at = max(job.steps)
    # The others also fail, because it is gone; the one named is the one that was killed.
    assert "rank failed: rank 5 on" in job.log and ": Killed; the newest checkpoint" in job.log
    finish(job, "`kill -9` of one rank", "job ended by srun with the rank's name, back into the queue", at=at)


def test_lost_node(cluster, with_a_checkpoint, finish):
    job = with_a_checkpoint
    cluster.crash("node5")
    try:
        job.wait_for(lambda: job.restarts == 1, "requeue")
        at = max(job.steps)
    finally:
        cluster.boot("node5")
    finish(job, "node lost (power)", "node down, Slurm put the job back into the queue", at=at)


def test_killed_slurmd(cluster, config, tmp_path, undisturbed_long, finish):
    job = cluster.submit(tmp_path, SCRIPT, str(config), *LONG, options=EIGHT)
    job.wait_for_step(2)
    cluster.orphan("node5")  # the rank on it goes on training until Slurm gives the node up
    try:
        job.wait_for(lambda: job.restarts == 1, "requeue")
        at = max(job.steps)
    finally:
        cluster.boot("node5")
    finish(
        job,
        "one slurmd killed, its rank not",
        "node down for Slurm after half a minute, the other ranks ended, job back into the queue",
        at=at,
        undisturbed=undisturbed_long,
    )


@pytest.fixture
def with_a_checkpoint(cluster, config, tmp_path):
    """A job beyond step 13 whose checkpoint of step 10 is complete."""
    job = cluster.submit(tmp_path, SCRIPT, str(config), options=EIGHT)
    job.wait_for(lambda: (tmp_path / "checkpoints" / "iter_0000010").is_dir(), "first checkpoint")
    job.wait_for_step(13)
    return job


@pytest.fixture
def full_from_step_10(cluster, config, mounted_disk, tmp_path):
    """A job whose disk is filled to the last byte after its first checkpoint, and the file that fills it."""
    save = mounted_disk / tmp_path.name
    events = f"logging.tensorboard_dir={save}/tensorboard"
    job = cluster.submit(tmp_path, SCRIPT, str(config), f"checkpoint.save={save}", events, options=EIGHT, PREFLIGHT="1")
    job.wait_for(lambda: (save / "iter_0000010").is_dir(), "first checkpoint")
    return job, fill(mounted_disk)


def test_disk_full_while_saving(full_from_step_10, mounted_disk, finish):
    job, filler = full_from_step_10
    job.wait_for(lambda: "checkpoint not saved, training goes on" in job.log, "failed checkpoint")
    at = max(job.steps)
    filler.unlink()
    finish(job, "disk full for one checkpoint", "said so, went on training, saved at the next interval", at=at, lost=0)
    assert job.restarts == 0
    assert not list(mounted_disk.glob("*/*.partial*"))


def test_disk_full_until_the_end(full_from_step_10, finish):
    job, filler = full_from_step_10
    job.wait_for(lambda: job.restarts == 1, "requeue")
    assert "step 40 is not saved (" in job.log and "No space left on device" in job.log
    at = max(job.steps)
    # Room for the name of the folder's owner, and not for a checkpoint: the check of the nodes lets the job go on.
    os.truncate(filler, filler.stat().st_size - 2**18)
    job.wait_for(lambda: job.resumed_at, "next life")
    assert "one checkpoint takes up to" in job.log and "; the run continues from " in job.log
    filler.unlink()
    finish(job, "disk full until the end", "the last checkpoint failed: back into the queue with the reason", at=at)


def test_newest_checkpoint_truncated(cluster, config, tmp_path, finish):
    job = cluster.submit(tmp_path, SCRIPT, str(config), options=EIGHT)
    job.wait_for_step(13)
    cluster.ask("scancel", "--batch", "--signal=USR1", job.id)
    job.wait_for(lambda: job.restarts == 1, "requeue")
    at = max(job.steps)
    newest = max((tmp_path / "checkpoints").glob("iter_???????"))
    assert newest.name == f"iter_{at:07d}"
    largest = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    finish(job, "newest checkpoint truncated", "set aside with its reason; the one before it was used", at=at)
    assert list((tmp_path / "checkpoints").glob(f"{newest.name}.damaged-*"))
