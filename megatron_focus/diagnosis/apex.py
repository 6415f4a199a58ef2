"""NVIDIA's apex, told from the other project of that name. Standard library alone; imports nothing of either."""

import importlib.metadata
import importlib.util
from pathlib import Path

from megatron_focus.diagnosis.packages import Package, import_error

INSTALL = (
    "git clone https://github.com/NVIDIA/apex && cd apex && "
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 python -m pip install -v --no-build-isolation ."
)
"""As apex' README says; takes nvcc of torch's CUDA version. NGC's PyTorch containers have it built in."""
REMOVE = "python -m pip uninstall -y apex"


def inspect_apex() -> tuple[Package, str]:
    """What ``import apex`` would give, and the lines that lead to NVIDIA's.

    The name on PyPI belongs to a toolkit for the Pyramid web framework, so ``pip install apex`` brings that one.
    """
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return Package(name="apex", version=None, error=None, wanted=""), INSTALL
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    version = _version()
    if not any((folder / "optimizers").is_dir() for folder in folders):
        summary = _summary()
        error = f"this is not NVIDIA's apex but another project of that name from PyPI{summary}"
        return Package(name="apex", version=version, error=error, wanted=""), f"{REMOVE} && {INSTALL}"
    problem = None
    if importlib.util.find_spec("amp_C") is None:
        problem = "built without its CUDA extensions, so it has no fused Adam"
    problem = problem or import_error("import torch, amp_C; from apex.optimizers import FusedAdam")
    return Package(name="apex", version=version, error=problem, wanted=""), INSTALL


def _version() -> str:
    try:
        return importlib.metadata.version("apex")
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def _summary() -> str:
    try:
        return f" ({importlib.metadata.metadata('apex')['Summary']})"
    except importlib.metadata.PackageNotFoundError:
        return ""
