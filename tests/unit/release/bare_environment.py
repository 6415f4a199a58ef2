"""Virtual environments in which a folder is used as its users do, with nothing of this repository."""

import os
import subprocess
import sys
from pathlib import Path

import torch


def make_environment(folder: Path, transformers: str) -> str:
    """Torch as here, this transformers, and pillow; the environment's interpreter."""
    # The interpreter beneath this one, so that nothing of this environment shows through.
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    python = str(folder / "bin" / "python")
    packages = [f"torch=={torch.__version__.partition('+')[0]}", f"transformers=={transformers}", "pillow"]
    run = subprocess.run(
        [python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True, timeout=1800
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return python


def run_script(python: str, script: str, folder: Path, *arguments: Path) -> str:
    """What a script says that an interpreter runs in a folder."""
    file = folder / "user.py"
    file.write_text(script)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, str(file), *map(str, arguments)]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
