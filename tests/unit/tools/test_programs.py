"""What all programs have in common: quick help, quiet libraries, and output whose reader may leave."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOOLS = sorted(f"tools.{path.stem}" for path in (ROOT / "tools").glob("[a-z]*.py"))
QUICKSTART = [f"examples.quickstart.{name}" for name in ("ask", "make_dataset", "picture", "summary")]
PROGRAMS = [*TOOLS, *QUICKSTART, "examples.sample_sets.make", "megatron_focus.train", "examples.demo"]
SLOW = ("torch", "megatron.core", "transformers", "gradio", "matplotlib")
"""Libraries that take longer to import than a user waits for a line of help."""

HELP = """
import runpy, sys
sys.argv[1:] = ["--help"]
try:
    runpy.run_module({program!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end.code, [name for name in {slow!r} if name in sys.modules], file=sys.stderr)
"""

PRINTS = """
import os, sys, warnings
from megatron_focus.program import run_program
def main():
    try:
        for number in range({lines}):
            print("line", number)
        {more}
    except OSError as error:
        print("error:", error, file=sys.stderr)
        return 2
    finally:
        os.write(2, b"tidied up;")
    return 3
run_program(main)
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    settings = {"env": os.environ | environment, "cwd": ROOT, "capture_output": True, "text": True, "timeout": 100}
    return subprocess.run([sys.executable, "-c", code], **settings)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_imports_no_slow_library(program):
    ended = run(HELP.format(program=program, slow=SLOW))
    assert ended.stderr == "0 []\n" and ended.stdout.startswith("usage: ")


def unread(code: str, **environment: str) -> tuple[int, str]:
    """Exit status and errors of a program whose output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    settings = {"env": os.environ | environment, "cwd": ROOT, "stdout": writer, "stderr": subprocess.PIPE, "text": True}
    ended = subprocess.run([sys.executable, "-c", code], **settings, timeout=100)
    os.close(writer)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_ends_the_program_quietly(lines, unbuffered):
    """With the status that a shell gives for SIGPIPE; also where the program takes errors of files for its own."""
    code = PRINTS.format(lines=lines, more="pass")
    assert unread(code, PYTHONUNBUFFERED=unbuffered) == (141, "tidied up;")
    read = run(code)
    assert (read.returncode, read.stdout.count("\n")) == (3, lines)


def test_help_that_nobody_reads():
    code = "import sys, runpy; sys.argv[1:] = ['--help']; runpy.run_module('tools.plan', run_name='__main__')"
    assert unread(code) == (141, "")


def test_without_standard_output():
    command = ["bash", "-c", 'exec "$@" >&-', "bash", sys.executable, "-c", PRINTS.format(lines=1, more="pass")]
    ended = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=100)
    assert (ended.returncode, ended.stderr) == (3, "tidied up;")


def test_another_broken_pipe_is_an_error():
    broken = "reader, writer = os.pipe(); os.close(reader); os.write(writer, b'x')"
    ended = run(PRINTS.format(lines=1, more=broken))
    assert (ended.returncode, ended.stdout) == (2, "line 0\n") and "Broken pipe" in ended.stderr


def test_warnings_that_concern_the_user_are_shown():
    more = "warnings.warn('Apex is not installed. Something falls back'); warnings.warn('the disk is nearly full')"
    ended = run(PRINTS.format(lines=0, more=more))
    assert "the disk is nearly full" in ended.stderr and "Apex" not in ended.stderr
