"""Ranks from the launcher, and Slurm's lists of hosts."""

import shutil
import subprocess

import pytest

from megatron_focus.diagnosis.launch import expand_hostlist, read_launch
from megatron_focus.diagnosis.meeting import describe_missing

GOOD = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
LISTS = ["node1", "node[1-3,07-09],gpu-a[1-2],x", "rack[1-2]n[01-02]", "a[098-102]", "n[3]"]


@pytest.mark.parametrize("hostlist", LISTS)
def test_hosts_are_those_of_scontrol(hostlist, tmp_path, monkeypatch):
    if shutil.which("scontrol") is None:
        pytest.skip("needs Slurm's scontrol")
    # scontrol wants a configuration, and no controller, for this.
    (tmp_path / "slurm.conf").write_text("ClusterName=none\nSlurmctldHost=localhost\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    run = subprocess.run(["scontrol", "show", "hostnames", hostlist], capture_output=True, text=True, check=True)
    assert expand_hostlist(hostlist) == run.stdout.split()


def test_hosts():
    assert expand_hostlist("node[8-10],login") == ["node8", "node9", "node10", "login"]
    assert expand_hostlist("") == []
    with pytest.raises(ValueError, match="'x-2'"):
        expand_hostlist("node[x-2]")


def test_launch():
    launch = read_launch(GOOD | {"SLURMD_NODENAME": "n1", "SLURM_JOB_NODELIST": "n[0-1]"})
    assert (launch.rank, launch.local_rank, launch.node, launch.allocated) == (3, 1, "n1", ("n0", "n1"))


def test_a_task_of_srun_needs_nothing_else():
    task = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_NODELIST": "n[0-1]"}
    launch = read_launch(task | {"SLURM_JOB_ID": "10007"})
    assert (launch.rank, launch.world_size, launch.local_rank) == (3, 4, 1)
    assert (launch.master_addr, launch.master_port) == ("n0", 20007)
    assert read_launch(task | GOOD | {"RANK": "2"}).rank == 2, "torchrun in a job says more"


@pytest.mark.parametrize(("name", "value"), [("RANK", ""), ("RANK", "4"), ("LOCAL_RANK", "x"), ("MASTER_ADDR", "")])
def test_a_process_that_does_not_know_its_place(name, value):
    with pytest.raises(ValueError, match=name):
        read_launch(GOOD | {name: value})


def launch(allocated=()):
    return read_launch(GOOD | {"SLURM_JOB_NODELIST": ",".join(allocated)})


def test_missing_ranks_are_named_by_node():
    assert describe_missing(launch(["a", "b"]), {0: "a", 1: "a"}, "did not arrive", 5) == (
        "b: nothing heard from there; ranks 2-3 did not arrive in 5 s"
    )
    assert describe_missing(launch(), {0: "a", 1: "a", 3: "b"}, "did not arrive", 5) == (
        "b: 1 of 2 processes there; rank 2 did not arrive in 5 s"
    )
    assert describe_missing(launch(), {0: "a", 1: "b"}, "did not arrive", 5) == (
        "ranks 2-3 did not arrive in 5 s; there are a, b"
    )
