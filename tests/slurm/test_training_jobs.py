"""The job scripts with the real trainer, on eight nodes of a real Slurm."""

import json
import re
import sys

import pytest

from tests.slurm.cluster import ROOT
from tests.slurm.conftest import EIGHT

pytestmark = pytest.mark.slow


def test_trains_on_eight_nodes(undisturbed):
    nodes = {
        re.search(r"^--- rank \d of 8 on (\S+),", file.read_text())[1] for file in undisturbed.logs.glob("rank-*.log")
    }
    assert len(nodes) == 8 or nodes == {next(iter(nodes))}  # one host name where namespaces are not permitted
    assert len(list(undisturbed.logs.glob("rank-*.log"))) == 8
    assert json.loads((undisturbed.logs / f"outcome-{undisturbed.id}.0.json").read_text()) == {
        "status": "finished",
        "iteration": 40,
        "train_iters": 40,
    }
    assert sorted(undisturbed.steps) == list(range(1, 41))
    # The resolved configuration and the verdict on the nodes come before the first step.
    before = undisturbed.log.split("step 1/40")[0]
    assert "# 8 ranks: TP 1 x PP 1 x DP 8" in before and "train_iters: 40" in before
    assert re.search(r"^preflight: 8 nodes, 8 processes without GPUs, all good", before, re.MULTILINE)
    assert "step 40/40" in (undisturbed.logs / "rank-0.log").read_text()


def test_the_check_of_the_nodes_alone(cluster, config):
    tasks = ("srun", "--nodes=2", "--ntasks-per-node=2", "--overcommit")
    said = cluster.ask(*tasks, sys.executable, str(ROOT / "tools" / "preflight.py"), str(config))
    assert said.splitlines()[-1].startswith("preflight: 2 nodes, 4 processes without GPUs, all good")


def test_preempted_job_saves_goes_back_and_continues(cluster, config, undisturbed, tmp_path, fault_table):
    job = cluster.submit(tmp_path, "slurm/finetune_8node.sh", str(config), options=(*EIGHT, "--partition=preempt"))
    job.wait_for_step(2)
    # A job of higher priority that needs all nodes.
    cluster.ask("sbatch", "--nodes=8", "--exclusive", "--output=/dev/null", "--wrap=true")
    job.wait_for(lambda: job.restarts == 1, "requeue")
    at = max(job.steps)
    assert job.wait() == "COMPLETED"
    assert job.resumed_at == [at], "a step was lost, or done twice"
    assert job.steps == undisturbed.steps
    fault_table.add(
        "preemption",
        "SIGTERM to the ranks: checkpoint after the step, back into the queue",
        at=at,
        job=job,
        undisturbed=undisturbed,
    )


def test_configuration_error_ends_the_job_at_once(cluster, config, tmp_path):
    job = cluster.submit(
        tmp_path, "slurm/pretrain_8node.sh", str(config), "parallel.tensor_model_parallel_size=3", options=EIGHT
    )
    assert job.wait() == "FAILED"
    assert (job.exit_code, job.restarts) == ("2:0", 0)
    assert "error: " in job.log and "tensor_model_parallel_size" in job.log
    assert "not tried again" in job.log.splitlines()[-1]
    assert not list(job.logs.glob("rank-*.log")), "ranks were started"
