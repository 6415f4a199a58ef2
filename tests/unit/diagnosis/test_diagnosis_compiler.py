"""The compiler that Megatron's fusions need, with the one that is here and with ones that fail."""

import pytest

from megatron_focus.diagnosis.compiler import compiler_findings, find_compiler


@pytest.fixture
def compiler():
    found = find_compiler()
    if found is None:
        pytest.skip("there is no C compiler here")
    return found


def test_the_one_that_triton_takes(monkeypatch, tmp_path):
    assert find_compiler({"CC": "/opt/cc"}) == "/opt/cc"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler({}) is None
    for name in ("clang", "gcc"):  # gcc comes first where both are there
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert find_compiler({}) == str(tmp_path / name)


def test_what_is_here_builds_against_python(compiler):
    assert compiler_findings(compiler) == []


def test_headers_that_are_missing_are_named(compiler, tmp_path):
    [finding] = compiler_findings(compiler, include=str(tmp_path))
    assert finding.is_problem and f"no Python.h in {tmp_path}" in finding.message
    assert finding.fix.startswith("apt-get install gcc python3.")


@pytest.mark.parametrize(("compiler", "message"), [(None, "none was found"), ("/nowhere/cc", "cannot be run")])
def test_no_compiler(compiler, message):
    [finding] = compiler_findings(compiler)
    assert finding.is_problem and message in finding.message and "$CC" in finding.fix


def test_a_compiler_that_fails_is_quoted(tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'cc1: out of luck' >&2; exit 1\n")
    broken.chmod(0o755)
    [finding] = compiler_findings(str(broken))
    assert finding.message == f"{broken} fails: cc1: out of luck"
