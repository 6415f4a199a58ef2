import os
import subprocess
import sys

from tests.processes import all_end


def test_processes_end_after_their_parent_was_killed(tmp_path):
    """Also those that have more to say than a pipe holds."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal\n"
        "from types import SimpleNamespace\n"
        "from data_pipeline.forked import run_forked\n"
        "def work(piece, send):\n"
        "    os.write(1, f'{os.getpid()}\\n'.encode())\n"  # at once, so that two lines cannot mix
        "    for number in range(50_000):\n"
        "        send('a message')\n"
        "def message(_):\n"
        "    global seen\n"
        "    seen += 1\n"
        "    if seen == 2000:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "seen = 0\n"
        "run_forked(work, [SimpleNamespace(name=n) for n in 'ab'], 2, message, lambda: None)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONUNBUFFERED": "1"}
    ended = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    children = [int(pid) for pid in ended.stdout.split()]
    assert len(children) == 2 and ended.stderr == ""
    assert all_end(children, within=10)
