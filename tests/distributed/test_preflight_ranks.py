"""The preflight with real processes: nodes that are in order, one that is not, and one that is not there."""

import contextlib
import io
import os
from pathlib import Path

import pytest

from megatron_focus.diagnosis.launch import read_launch
from megatron_focus.diagnosis.preflight import BAD_CONFIGURATION, BAD_NODE, GOOD, Limits, run_preflight
from megatron_focus.diagnosis.preflight_report import report, summary
from megatron_focus.diagnosis.rank_facts import collect_facts
from tests.distributed.harness import run_ranks
from tests.unit.diagnosis.run_folder import write_run_folder


@pytest.fixture(scope="module")
def run_yaml(tmp_path_factory):
    return str(write_run_folder(tmp_path_factory.mktemp("preflight") / "files"))


def preflight(run_yaml, overrides=(), change=None, limits=None, environment=None):
    """What one rank does; each is a node of its own. ``change`` is (rank, key, value) of a fact to be replaced."""
    rank = int(os.environ["RANK"])
    os.environ |= {"SLURMD_NODENAME": f"n{rank}", "LOCAL_RANK": "0"} | (environment or {}).get(rank, {})

    def collect(launch, config):
        facts = collect_facts(launch, config)
        if change is not None and change[0] == rank:
            facts.same[change[1]] = change[2]
        return facts

    announced: list[str] = []
    code = run_preflight(
        read_launch(),
        run_yaml,
        overrides,
        limits or Limits(stage_timeout_s=60),
        lambda outcome: announced.extend([summary(outcome), report(outcome)]),
        collect,
    )
    return (code, *announced) if announced else (code, None, None)


def test_three_nodes_in_order(run_yaml):
    results = run_ranks(preflight, 3, run_yaml)
    assert [code for code, _, _ in results] == [GOOD] * 3
    _, line, text = results[0]
    assert line.startswith("preflight: 3 nodes, 3 processes without GPUs, all good (")
    assert text.count("with n0") == 2  # both partners measured it
    save = Path(run_yaml).parent / "save"
    assert list((save / "run").iterdir()) == []  # the folder that the run needs, without the test's files


def test_another_version_on_one_node(run_yaml):
    results = run_ranks(preflight, 3, run_yaml, (), (1, "torch", "2.12.0"), None, {2: {"NCCL_ALGO": "Tree"}})
    assert [code for code, _, _ in results] == [BAD_NODE] * 3
    _, line, text = results[0]
    assert "n1: torch is 2.12.0, elsewhere 2." in line
    assert "n2: $NCCL_ALGO is Tree, elsewhere not set" in line
    assert "n0" not in line
    assert "speeds were not measured" in text


def test_a_folder_that_is_not_shared(run_yaml, tmp_path):
    """Rank 1 sees another folder under the same name."""
    results = run_ranks(_own_folder, 2, run_yaml, str(tmp_path))
    assert [code for code, _, _ in results] == [BAD_NODE] * 2
    assert "n1: checkpoint.save: " in results[0][1]
    assert "is not the folder that rank 0 sees" in results[0][1]


def _own_folder(run_yaml, folder):
    from megatron_focus.diagnosis import shared_folder

    shared_folder._PATIENCE_S = 0.5
    if os.environ["RANK"] == "1":
        shared_folder.Path = lambda path: Path(str(path).replace(folder, f"{folder}-elsewhere"))
    return preflight(run_yaml, [f"checkpoint.save={folder}/save"])


def test_what_is_wrong_everywhere_is_the_configuration(run_yaml):
    assert [result[0] for result in run_ranks(preflight, 2, run_yaml, ["optimizer.lr=-1"])] == [BAD_CONFIGURATION] * 2
    results = run_ranks(preflight, 2, run_yaml, ["data.path=/nowhere"])
    assert [code for code, _, _ in results] == [BAD_CONFIGURATION] * 2
    assert results[0][1].startswith("preflight: all nodes: data.path: /nowhere/dataset.json: no such file")


def _said(run_yaml, timeout_s):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code, _, _ = preflight(run_yaml, limits=Limits(rendezvous_timeout_s=timeout_s))
    return code, errors.getvalue()


def _one_is_missing(run_yaml):
    os.environ |= {"WORLD_SIZE": "3", "SLURM_JOB_NODELIST": "n[0-2]"}
    return _said(run_yaml, 3)


def test_a_node_that_does_not_come(run_yaml):
    assert run_ranks(_one_is_missing, 2, run_yaml) == [
        (BAD_NODE, "preflight: n2: nothing heard from there; rank 2 did not arrive in 3 s\n"),
        (BAD_NODE, ""),  # rank 0 has said it
    ]


def _without_rank_0(run_yaml):
    os.environ |= {"RANK": "1", "WORLD_SIZE": "2"}
    return _said(run_yaml, 2)


def test_rank_0_that_does_not_come(run_yaml):
    ((code, said),) = run_ranks(_without_rank_0, 1, run_yaml)
    assert code == BAD_NODE
    assert said.startswith("preflight: n1: rank 1 got no answer from rank 0 at MASTER_ADDR:MASTER_PORT localhost:")


def test_a_rank_that_fails(run_yaml):
    results = run_ranks(_fails, 2, run_yaml)
    assert [code for code, _ in results] == [BAD_NODE] * 2
    assert results[0][1] == ["preflight: n1: rank 1: RuntimeError: CUDA error: uncorrectable ECC error"]


def _fails(run_yaml):
    rank = int(os.environ["RANK"])
    os.environ |= {"SLURMD_NODENAME": f"n{rank}", "LOCAL_RANK": "0"}

    def collect(launch, config):
        if rank == 1:
            raise RuntimeError("CUDA error: uncorrectable ECC error\nmore")
        return collect_facts(launch, config)

    announced: list[str] = []
    limits = Limits(stage_timeout_s=60)
    code = run_preflight(read_launch(), run_yaml, (), limits, lambda found: announced.append(summary(found)), collect)
    return code, announced
