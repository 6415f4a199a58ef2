"""Everything that ``tools/doctor.py`` looks at, in order. Standard library alone, until a configuration is checked."""

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_focus.diagnosis.compiler import compiler_findings
from megatron_focus.diagnosis.components import FoundComponent, inspect_components
from megatron_focus.diagnosis.finding import Finding
from megatron_focus.diagnosis.gpus import Gpu, driver_cuda_version, driver_problem, query_gpus
from megatron_focus.diagnosis.machine import Machine, inspect_machine
from megatron_focus.diagnosis.packages import Package, inspect_packages
from megatron_focus.diagnosis.requirements import Requirement, project_requirements
from megatron_focus.diagnosis.torch_probe import TorchFacts, probe_torch

_BUSY_SHARE = 0.05  # of a GPU's memory, in use before anything of ours runs


@dataclass
class Diagnosis:
    """What was found on this machine."""

    needed: list[tuple[Package, str]] = field(default_factory=list)
    """Package and the line that installs it."""
    optional: list[FoundComponent] = field(default_factory=list)
    torch: TorchFacts | None = None
    driver_cuda: tuple[int, int] | None = None
    gpus: list[Gpu] = field(default_factory=list)
    machine: Machine | None = None
    run: dict[str, str] = field(default_factory=dict)
    """What the configuration names: key -> one line."""
    findings: list[Finding] = field(default_factory=list)

    def problems(self) -> list[Finding]:
        """Findings that have to be put right."""
        return [finding for finding in self.findings if finding.is_problem]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "needed": [asdict(package) | {"state": package.state, "install": line} for package, line in self.needed],
            "optional": [asdict(found) | {"state": found.package.state} for found in self.optional],
            "torch": asdict(self.torch) if self.torch else None,
            "driver_cuda": self.driver_cuda,
            "gpus": [asdict(gpu) for gpu in self.gpus],
            "machine": asdict(self.machine) if self.machine else None,
            "run": self.run,
            "findings": [asdict(finding) for finding in self.findings],
        }


def diagnose() -> Diagnosis:
    """Look at packages, GPUs and the machine; imports nothing that may be broken into this process."""
    requirements = project_requirements()
    diagnosis = Diagnosis(torch=probe_torch(), driver_cuda=driver_cuda_version(), machine=inspect_machine())
    _needed(diagnosis, requirements)
    diagnosis.optional = inspect_components(requirements, diagnosis.torch.cuda if diagnosis.torch else None)
    for found in diagnosis.optional:
        if found.package.state in ("broken", "other version"):
            message = (
                found.package.error or f"{found.package.version}, the project was tried with {found.package.wanted}"
            )
            diagnosis.findings.append(
                Finding(about=found.package.name, message=message, fix=found.install, is_problem=False)
            )
    _gpus(diagnosis)
    assert diagnosis.machine is not None
    diagnosis.findings += diagnosis.machine.findings()
    if diagnosis.gpus:  # on CPUs nothing is compiled
        diagnosis.findings += compiler_findings(diagnosis.machine.compiler)
    return diagnosis


def add_config(diagnosis: Diagnosis, path: str, overrides: Sequence[str], world_size: int | None) -> None:
    """Check that a configuration can run here, too.

    Raises:
        ValueError: the configuration cannot be loaded.
        FileNotFoundError: the file is missing.
    """
    broken = [package.name for package, _ in diagnosis.needed if package.state in ("missing", "broken")]
    if broken:  # their problems are in the list already, each with its line
        message = f"not checked: it takes {', '.join(broken)}"
        diagnosis.findings.append(Finding(about="configuration", message=message))
        return
    # Only now, and only here: these import what was found to work.
    loading = importlib.import_module("megatron_focus.config.loading")
    config_check = importlib.import_module("megatron_focus.diagnosis.config_check")
    check = config_check.check_config(loading.load_config(path, overrides), world_size, diagnosis.gpus)
    diagnosis.run |= check.described
    diagnosis.findings += check.findings


def _needed(diagnosis: Diagnosis, requirements: Sequence[Requirement]) -> None:
    core = [requirement for requirement in requirements if requirement.extra is None]
    for requirement, package in zip(
        core, inspect_packages([(requirement.name, requirement.versions) for requirement in core]), strict=True
    ):
        line = f"python -m pip install '{requirement.line}'"
        diagnosis.needed.append((package, line))
        if package.state == "missing":
            diagnosis.findings.append(Finding(about=package.name, message="is not installed", fix=line))
        elif package.error is not None:
            diagnosis.findings.append(
                Finding(about=package.name, message=f"cannot be imported: {package.error}", fix=_again(line))
            )
        elif package.state == "other version":
            message = f"{package.version} is installed, {package.wanted} is wanted"
            diagnosis.findings.append(Finding(about=package.name, message=message, fix=line, is_problem=False))


def _again(line: str) -> str:
    return line.replace("pip install", "pip install --force-reinstall --no-deps")


def _gpus(diagnosis: Diagnosis) -> None:
    try:
        diagnosis.gpus = query_gpus()
    except OSError as error:
        diagnosis.findings.append(Finding(about="GPUs", message=str(error)))
    for gpu in diagnosis.gpus:
        diagnosis.findings += [Finding(about="GPUs", message=problem) for problem in gpu.problems()]
        diagnosis.findings += [Finding(about="GPUs", message=text, is_problem=False) for text in gpu.warnings()]
        if gpu.used_mib > _BUSY_SHARE * gpu.memory_mib:
            message = f"GPU {gpu.index}: {gpu.used_mib / 1024:.1f} GiB are in use by something else"
            diagnosis.findings.append(Finding(about="GPUs", message=message, is_problem=False))
    torch = diagnosis.torch
    if torch is None or not diagnosis.gpus:
        return
    if torch.cuda is None:
        message = "torch is built without CUDA, although there are GPUs here: runs would take the CPU"
        diagnosis.findings.append(Finding(about="torch", message=message))
    elif problem := driver_problem(diagnosis.driver_cuda, torch.cuda) or torch.error:
        diagnosis.findings.append(Finding(about="torch", message=problem))
