"""``tools/environment.sh`` takes the environment that is there, unless another Python is asked for."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def source(tmp_path):
    """Sources a copy of the script beside environments that were installed by other Pythons."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "environment.sh", tmp_path / "tools")
    shutil.copy(ROOT / "setup.py", tmp_path)

    def run(environments, **variables):
        stamp = hashlib.sha256((tmp_path / "setup.py").read_bytes()).hexdigest()[:16]
        for folder, version in environments.items():
            program = tmp_path / folder / "bin" / "python"
            program.parent.mkdir(parents=True)
            # It prints its version when asked, and is new enough otherwise.
            program.write_text(f'#!/bin/sh\ncase "$2" in *print*) echo {version} ;; esac\n')
            program.chmod(0o755)
            (tmp_path / folder / f"installed-{stamp}-test").touch()
        script = 'set -euo pipefail; source tools/environment.sh test; echo "$VIRTUAL_ENV"'
        return subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True
        )

    return run


@pytest.mark.parametrize("variables", [{"PYTHON": ""}, {"PYTHON": sys.executable}])
def test_an_environment_of_this_python_is_taken(source, tmp_path, variables):
    run = source({".venv": OWN}, **variables)
    assert (run.stdout, run.stderr) == (f"{tmp_path}/.venv\n", "")


def test_an_environment_of_another_python_is_not_taken_for_the_one_asked_for(source, tmp_path):
    run = source({".venv": "3.99"}, PYTHON=sys.executable)
    assert run.returncode == 1 and run.stdout == ""
    assert f"{tmp_path}/.venv has Python 3.99, and PYTHON={sys.executable} is another" in run.stderr


def test_two_pythons_stand_beside_each_other(source, tmp_path):
    run = source({".venv": "3.99", ".venv-two": OWN}, PYTHON=sys.executable, VENV=".venv-two")
    assert (run.stdout, run.stderr) == (f"{tmp_path}/.venv-two\n", "")
