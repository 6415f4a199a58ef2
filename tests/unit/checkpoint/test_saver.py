"""How the process that waits for writers tells one that was killed from one that has finished."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from megatron_focus.checkpoint.saver import _ended_badly


@pytest.mark.parametrize(
    ("program", "badly"),
    [("pass", False), ("raise SystemExit(3)", True), (f"import os; os.kill(os.getpid(), {signal.SIGKILL:d})", True)],
)
def test_a_writer_that_failed_is_seen_and_left_to_its_parent(program, badly):
    child = subprocess.Popen([sys.executable, "-S", "-c", program])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert _ended_badly(psutil.Process(child.pid)) == badly
    assert (child.wait() != 0) == badly


def test_a_writer_that_runs_or_was_waited_for_is_not_taken_for_one_that_failed():
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(child.pid)
    assert not _ended_badly(process)
    child.communicate(b"\n")
    assert not _ended_badly(process)
