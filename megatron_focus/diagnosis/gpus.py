"""GPUs as the driver sees them, through nvidia-smi and libcuda. Standard library alone."""

import csv
import ctypes
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_TIMEOUT_S = 60.0
_BASE = ("index", "uuid", "name", "memory.total", "memory.used", "driver_version", "compute_cap")
_ECC_ERRORS = "ecc.errors.uncorrected.volatile.total"
_UNFIT = {
    "remapped_rows.pending": "a memory repair waits for a reset of the GPU",
    "remapped_rows.failure": "a memory repair has failed",
}
# Of a moment: a GPU that stays slow shows in the measured speeds.
_SLOWED = {
    "clocks_throttle_reasons.hw_thermal_slowdown": "slowed down because it is too hot (hardware)",
    "clocks_throttle_reasons.sw_thermal_slowdown": "slowed down because it is too hot (driver)",
    "clocks_throttle_reasons.hw_power_brake_slowdown": "slowed down by its power supply",
}
_HEALTH = (_ECC_ERRORS, *_UNFIT, *_SLOWED)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    index: int
    uuid: str
    name: str
    memory_mib: int
    used_mib: int
    driver: str
    compute_capability: str
    health: Mapping[str, str] = field(default_factory=dict)
    """nvidia-smi's field -> its answer, for those it knows."""

    def problems(self) -> list[str]:
        """What makes this GPU unfit: memory repairs that wait or have failed."""
        return self._said(_UNFIT)

    def warnings(self) -> list[str]:
        """What may have passed: memory errors, which cost a run but leave the GPU fit, and slow-downs."""
        errors = self.health.get(_ECC_ERRORS, "0")
        counted = [f"GPU {self.index}: {errors} uncorrected memory (ECC) errors since the driver was loaded"]
        return (counted if errors.isdigit() and int(errors) else []) + self._said(_SLOWED)

    def _said(self, meanings: Mapping[str, str]) -> list[str]:
        found = [meaning for name, meaning in meanings.items() if self.health.get(name) in ("Yes", "Active", "1")]
        return [f"GPU {self.index}: {meaning}" for meaning in found]


def query_gpus() -> list[Gpu]:
    """All GPUs that this process may see, by the driver's order; none where there is no nvidia-smi.

    Raises:
        OSError: nvidia-smi is there and fails.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    code, output = _query((*_BASE, *_HEALTH))  # one call for all: ranks of a node ask at the same time
    if code == 0:
        rows, known = _rows(output), len(_BASE)
        columns = {name: [row[known + column] for row in rows] for column, name in enumerate(_HEALTH)}
        return parse_gpus([row[:known] for row in rows], columns)
    # nvidia-smi refuses a whole query for one field that its version does not know.
    code, output = _query(_BASE)
    if code != 0:
        raise OSError(f"nvidia-smi fails: {output}")
    answers = {name: _query((name,)) for name in _HEALTH}
    columns = {name: [row[0] for row in _rows(output)] for name, (code, output) in answers.items() if code == 0}
    return parse_gpus(_rows(output), columns)


def parse_gpus(base: Sequence[Sequence[str]], health: Mapping[str, Sequence[str]]) -> list[Gpu]:
    """nvidia-smi's answers (csv, noheader, nounits) -> GPUs.

    Args:
        base: a row for each GPU, of the fields that every version knows.
        health: field -> its value for each GPU.
    """
    return [
        Gpu(
            index=int(index),
            uuid=uuid,
            name=name,
            memory_mib=_number(total),
            used_mib=_number(used),
            driver=driver,
            compute_capability=capability,
            health={name: values[i] for name, values in health.items()},
        )
        for i, (index, uuid, name, total, used, driver, capability) in enumerate(base)
    ]


def driver_cuda_version() -> tuple[int, int] | None:
    """Newest CUDA version that the driver knows (major, minor); None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def driver_problem(driver: tuple[int, int] | None, runtime: str | None) -> str | None:
    """Why a driver cannot run torch's CUDA.

    A driver runs every minor version of its major version and older ones (NVIDIA, CUDA Compatibility).

    Args:
        driver: newest CUDA version of the driver.
        runtime: CUDA version that torch was built with; None for a torch without CUDA.
    """
    if driver is None or runtime is None or int(runtime.split(".")[0]) <= driver[0]:
        return None
    return (
        f"torch is built with CUDA {runtime}, but the driver knows CUDA {driver[0]}.{driver[1]} at most: install a "
        f"newer driver, or a torch for CUDA {driver[0]}"
    )


def _rows(output: str) -> list[list[str]]:
    return [row for row in csv.reader(output.splitlines(), skipinitialspace=True) if row]


def _query(fields: Sequence[str]) -> tuple[int, str]:
    """Exit code, and the answer or what nvidia-smi complains of.

    Raises:
        OSError: it does not answer at all.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"nvidia-smi fails: no answer in {_TIMEOUT_S:.0f} s") from error
    return run.returncode, run.stdout if run.returncode == 0 else (run.stdout + run.stderr).strip()


def _number(text: str) -> int:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0
