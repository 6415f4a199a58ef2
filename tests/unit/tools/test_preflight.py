"""``tools/preflight.py``: its command line, and what it prints."""

import json
import subprocess
import sys

import pytest

from megatron_focus.diagnosis.preflight import BAD_NODE, GOOD, Outcome
from megatron_focus.diagnosis.preflight_report import report, summary
from megatron_focus.diagnosis.rank_facts import RankFacts
from megatron_focus.diagnosis.speed import Speeds
from megatron_focus.diagnosis.verdict import Verdict
from tools.preflight import main


def test_without_a_launcher(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    assert main(["config.yaml"]) == 2
    assert "RANK='' is not a number" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["config.yaml", "--min-share", "-1"], ["c.yaml", "--stage-timeout", "nan"]])
def test_command_lines_that_make_no_sense(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def outcome(gpu=True):
    facts = [
        RankFacts(
            f"n{rank // 2}",
            rank,
            rank % 2,
            same={"torch": "2.13.0"},
            gpu={"name": "NVIDIA A100", "GiB": "79", "uuid": str(rank)} if gpu else {},
        )
        for rank in range(4)
    ]
    speeds = [Speeds(tflops=250.0 + rank, whole=40.0 + rank, within=200.0, pairs={}) for rank in range(4)]
    return Outcome(GOOD, Verdict(), facts=facts, speeds=speeds, clocks=[0.0] * 4, seconds=12.34)


def test_all_good():
    assert summary(outcome()) == "preflight: 2 nodes, 4 GPUs, all good (12.3 s)"
    assert summary(outcome(gpu=False)) == "preflight: 2 nodes, 4 processes without GPUs, all good (12.3 s)"
    said = report(outcome()).splitlines()
    assert said[0] == "n0 (ranks 0-1)"
    assert said[1].split(maxsplit=1) == ["GPUs", "2 x NVIDIA A100, 79 GiB"]
    assert said[-1] == "all-reduce of the whole job: 40.00 GB/s"
    assert any("250.00 to 251.00 TFLOP/s" in line for line in said)


def test_bad_nodes_in_one_line():
    found = outcome()
    found.exit_code = BAD_NODE
    found.verdict.problem("n1", "driver is 535, elsewhere 550")
    found.verdict.problem("n0", "its clock is 9.0 s ahead")
    assert summary(found) == "preflight: n0: its clock is 9.0 s ahead; n1: driver is 535, elsewhere 550"
    assert [line.split(maxsplit=1)[1] for line in report(found).splitlines() if "PROBLEM" in line] == [
        "its clock is 9.0 s ahead",
        "driver is 535, elsewhere 550",
    ]
    assert json.loads(json.dumps(found.to_json()))["ranks"][3]["speeds"]["tflops"] == 253.0


HANGS = """
import time
from torch.distributed import TCPStore
from megatron_focus.diagnosis.launch import Launch
from megatron_focus.diagnosis.watchdog import Watchdog
store = TCPStore("localhost", 0, 1, is_master=True)
launch = Launch(rank=0, world_size=2, local_rank=0, master_addr="", master_port=0, node="n0", allocated=())
watchdog = Watchdog(launch, ["n0", "n1"], store, 0.5)
watchdog.stage("matrix products")
watchdog.stage("all-reduce")
time.sleep(60)
"""


def test_a_hang_ends():
    run = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=50)
    assert run.returncode == 1
    assert "preflight: n1: rank 1 in: has not begun; the others in: all-reduce (no end in 0.5 s)" in run.stderr
