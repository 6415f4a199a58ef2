"""The C compiler that a run on GPUs calls. Standard library alone.

Megatron-Core compiles its fusions at first use (``torch.compile``), and so does Transformer Engine. Triton, which torch
makes the kernels with, brings NVIDIA's assembler along, but builds the code that starts a kernel with the system's C
compiler against Python's headers. Neither nvcc nor ninja is needed.
"""

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

from megatron_focus.diagnosis.finding import Finding

_SOURCE = "#include <Python.h>\nint answer(void) { return PY_VERSION_HEX; }\n"
_TIMEOUT_S = 60.0


def find_compiler(environment: Mapping[str, str] = os.environ) -> str | None:
    """The one that Triton takes: ``$CC``, else gcc, else clang; None without any."""
    return environment.get("CC") or shutil.which("gcc") or shutil.which("clang")


def compiler_findings(compiler: str | None, include: str | None = None) -> list[Finding]:
    """Build a small library as Triton does, and say what is missing.

    Args:
        compiler: its path or command.
        include: folder of Python's headers; this Python's by default.
    """
    include = include or sysconfig.get_paths()["include"]
    python = f"python{sysconfig.get_python_version()}"
    install = f"apt-get install gcc {python}-dev   (or your system's; another compiler is named by $CC)"
    if compiler is None:
        message = "none was found: Megatron's fusions are compiled at the first step and would end the run there"
        return [Finding(about="C compiler", message=message, fix=install)]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(_SOURCE)
        command = [compiler, str(source), "-shared", "-fPIC", f"-I{include}", "-o", f"{folder}/probe.so"]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return [Finding(about="C compiler", message=f"{compiler} cannot be run: {error}", fix=install)]
    if run.returncode == 0:
        return []
    if not Path(include, "Python.h").exists():
        message = f"{compiler} finds no Python.h in {include}, which Megatron's fusions are compiled with"
        return [Finding(about="C compiler", message=message, fix=install)]
    said = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[0]
    return [Finding(about="C compiler", message=f"{compiler} fails: {said}", fix=install)]
