"""The functions that tell how a job's earlier lives ended; plain bash, no cluster."""

import subprocess

import pytest

from tests.slurm.cluster import ROOT


def run(function, *arguments, life="7.1", **variables):
    script = f'set -euo pipefail; source "{ROOT}/slurm/lives.sh"; {function} "$@"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *map(str, arguments)],
        env={"LIFE": life, "PATH": "/usr/bin:/bin"} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.rstrip("\n")


def test_newest_checkpoint_is_the_newest_complete_one(tmp_path):
    assert run("newest_checkpoint", tmp_path) == "-1"
    for name in ("iter_0000008", "iter_0000010", "iter_0000012.partial-7.0", "iter_0000020.damaged-1", "owner"):
        (tmp_path / name).mkdir()
    assert run("newest_checkpoint", tmp_path) == "10"


@pytest.mark.parametrize(
    ("path", "outside"),
    [
        ("/data/runs/mine", "/lustre/me/runs/mine"),
        ("/data", "/lustre/me"),
        ("/database", "/database"),
        ("/models/a", "/nfs/models/a"),
        ("runs/mine", "runs/mine"),
        ("null", "null"),
    ],
)
def test_paths_of_a_container_are_found_outside_of_it(path, outside):
    mounts = {"MEGATRON_FOCUS_MOUNTS": "/lustre/me:/data,/nfs/models/:/models/:ro"}
    assert run("outside", path, MEGATRON_FOCUS_IMAGE="x", **mounts) == outside
    assert run("outside", path, **mounts) == path == run("outside", path, MEGATRON_FOCUS_IMAGE="x")


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ([], 0),
        (["7.0 -1"], 1),
        (["7.0 -1", "7.1 -1"], 2),
        (["7.0 -1", "7.1 -1", "7.2 5"], 1),
        (["7.0 5", "7.0 interrupted"], 0),
        (["7.0 5", "7.1 5", "7.1 interrupted", "7.2 5"], 2),
        # The newest was damaged, and the one before it is no progress.
        (["7.0 5", "7.1 10", "7.2 5"], 2),
    ],
)
def test_lives_without_progress(tmp_path, lines, count):
    (tmp_path / "lives").write_text("".join(f"{line}\n" for line in lines))
    restarts = max((int(line.split()[0].split(".")[1]) for line in lines), default=-1)
    assert run("lives_without_progress", tmp_path / "lives", restarts) == str(count)


@pytest.mark.parametrize(
    ("lines", "restarts", "count"), [([], 0, 1), ([], 2, 3), (["7.0 5", "7.1 5"], 3, 4), (["7.0 5", "7.1 10"], 3, 3)]
)
def test_lives_that_could_not_be_noted_count(tmp_path, lines, restarts, count):
    if lines:
        (tmp_path / "lives").write_text("".join(f"{line}\n" for line in lines))
    assert run("lives_without_progress", tmp_path / "lives", restarts) == str(count)


def test_furthest_start_ignores_interruptions(tmp_path):
    (tmp_path / "lives").write_text("7.0 -1\n7.1 10\n7.1 interrupted\n7.2 5\n")
    assert run("furthest", tmp_path / "lives", 5) == "10"
    assert run("furthest", tmp_path / "lives", 15) == "15"
    assert run("furthest", tmp_path / "none", -1) == "-1"


@pytest.mark.parametrize(
    ("message", "failure"),
    [
        ("srun: error: node3: task 2: Exited with exit code 1", "rank 2 on node3: Exited with exit code 1"),
        ("srun: error: node3: tasks 5-7,9: Killed", "rank 5 on node3: Killed"),
        ("srun: error: Node failure on node4", "node failure on node4"),
        ("slurmstepd-node1: error: *** STEP 1.1 ON node1 CANCELLED ***", ""),
    ],
)
def test_first_failure_is_the_first_that_srun_names(tmp_path, message, failure):
    file = tmp_path / "srun.log"
    file.write_text(f"srun: got SIGCONT\n{message}\n" + ("srun: error: node9: task 8: Terminated\n" if failure else ""))
    assert run("first_failure", file) == failure


def test_last_words_are_those_of_this_life(tmp_path):
    file = tmp_path / "rank-2.log"
    file.write_text("--- rank 2 of 4 on a, life 7.0, then\nold\n--- rank 2 of 4 on b, life 7.1, now\nnew\n")
    assert run("last_words", file) == "--- rank 2 of 4 on b, life 7.1, now\nnew"


def test_setting_reads_one_section(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "data:\n  save: wrong\ncheckpoint:\n  save_interval: 3\n  save: 'runs/my run'\nlogging:\n  save: x\n"
    )
    assert run("setting", "checkpoint", "save", file) == "runs/my run"
