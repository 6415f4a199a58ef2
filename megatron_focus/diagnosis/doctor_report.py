"""The doctor's table. Standard library alone."""

from collections.abc import Iterator, Sequence

from megatron_focus.diagnosis.doctor import Diagnosis
from megatron_focus.diagnosis.finding import Finding
from megatron_focus.diagnosis.machine import size


def report(diagnosis: Diagnosis, seconds: float) -> str:
    """The whole table, findings and one line that sums up."""
    problems = diagnosis.problems()
    others = [finding for finding in diagnosis.findings if not finding.is_problem]
    counts = [_count(len(problems), "problem"), _count(len(others), "warning")]
    return "\n".join(
        [
            *_packages(diagnosis),
            *_machine(diagnosis),
            *(
                ["", "This configuration", *(f"  {key:<24} {line}" for key, line in diagnosis.run.items())]
                * bool(diagnosis.run)
            ),
            *_findings("Problems", problems),
            *_findings("Warnings", others),
            "",
            f"doctor: {' and '.join(counts)} ({seconds:.1f} s)",
        ]
    )


def _packages(diagnosis: Diagnosis) -> Iterator[str]:
    yield "Needed packages"
    for package, _ in diagnosis.needed:
        yield f"  {package.state:<14} {package.name:<20} {package.version or '-':<16} wanted {package.wanted or 'any'}"
    yield ""
    yield "Optional packages, and what they enable"
    for found in diagnosis.optional:
        package = found.package
        wanted = f" (wanted {package.wanted})" if package.wanted else ""
        yield f"  {package.state:<14} {package.name:<20} {package.version or '-':<16} {found.enables}{wanted}"
        if package.state == "missing":
            yield f"  {'':<14} {found.install}"


def _machine(diagnosis: Diagnosis) -> Iterator[str]:
    machine, torch = diagnosis.machine, diagnosis.torch
    assert machine is not None
    yield ""
    yield "GPUs"
    for gpu in diagnosis.gpus:
        yield (
            f"  {gpu.index}: {gpu.name}, {gpu.memory_mib / 1024:.1f} GiB, compute capability {gpu.compute_capability}, "
            f"driver {gpu.driver}"
        )
    if not diagnosis.gpus:
        yield "  none (no nvidia-smi, or it shows none)"
    driver = ".".join(map(str, diagnosis.driver_cuda)) if diagnosis.driver_cuda else "no driver"
    runtime = (torch.cuda or "none: a CPU build") if torch else "torch cannot be asked"
    yield f"  CUDA of the driver: {driver}; of torch: {runtime}; NCCL of torch: {(torch and torch.nccl) or 'none'}"
    yield ""
    yield "Machine"
    shm = f"/dev/shm {size(machine.shared_memory)}"
    yield f"  {machine.cores} CPU cores, {size(machine.memory)} memory, {shm}"
    yield f"  open files: {machine.open_files} at most; Slurm: {machine.slurm or 'no commands here'}"
    yield f"  C compiler: {machine.compiler or 'none'}"


def _findings(title: str, findings: Sequence[Finding]) -> Iterator[str]:
    if findings:
        yield ""
        yield title
    for finding in findings:
        joint = "" if finding.message.startswith("=") else ": "
        yield f"  {finding.about}{joint}{finding.message}"
        if finding.fix is not None:
            yield f"      {finding.fix}"


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
