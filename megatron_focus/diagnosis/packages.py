"""Which packages are there and can be imported. Standard library alone; imports happen in processes of their own."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from megatron_focus.diagnosis.requirements import fits

_TIMEOUT_S = 120.0
_MODULES = {
    "megatron-core": "megatron.core",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "transformer-engine": "transformer_engine.pytorch",
    "nvidia-dali-cuda120": "nvidia.dali.fn",
    "nvidia-dali-cuda130": "nvidia.dali.fn",
}


@dataclass(frozen=True, kw_only=True)
class Package:
    """What was found of one package."""

    name: str
    version: str | None
    """None: not installed."""
    error: str | None
    """Why it cannot be imported."""
    wanted: str
    """Versions that the project asks for; empty: any."""

    @property
    def state(self) -> str:
        """``ok``, ``missing``, ``broken`` (cannot be imported) or ``other version``."""
        if self.version is None:
            return "missing"
        if self.error is not None:
            return "broken"
        return "ok" if fits(self.version, self.wanted) else "other version"


def inspect_packages(wanted: Sequence[tuple[str, str]]) -> list[Package]:
    """Look for each ``(distribution, versions)`` and import it, several at a time."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda pair: inspect_package(*pair), wanted))


def inspect_package(name: str, wanted: str = "") -> Package:
    """Look for one distribution and import its module in a process of its own: what is broken may end the process."""
    package = partial(Package, name=name, wanted=wanted)
    version = installed_version(name)
    if version is None:
        return package(version=None, error=None)
    module = _MODULES.get(name, name.replace("-", "_"))
    return package(version=version, error=import_error(f"import {module}"))


def installed_version(name: str) -> str | None:
    """Version by the metadata; None where the distribution is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def import_error(code: str) -> str | None:
    """Run ``code`` in a new interpreter: None if it ends well, else the last line that it wrote."""
    try:
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"takes more than {_TIMEOUT_S:.0f} s"
    if run.returncode == 0:
        return None
    if run.returncode < 0:
        return f"ended by signal {-run.returncode}"
    return (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
