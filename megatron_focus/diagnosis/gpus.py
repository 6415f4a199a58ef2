"""GPUs as the driver sees them, through nvidia-smi and libcuda. Standard library alone."""

import csv
import ctypes
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_TIMEOUT_S = 60.0
# In groups: nvidia-smi refuses a whole query for one field that its version does not know.
_BASE = ("index", "uuid", "name", "memory.total", "memory.used", "driver_version", "compute_cap")
_HEALTH: tuple[tuple[str, ...], ...] = (
    ("ecc.errors.uncorrected.volatile.total",),
    ("remapped_rows.pending",),
    ("remapped_rows.failure",),
    ("clocks_throttle_reasons.hw_thermal_slowdown",),
    ("clocks_throttle_reasons.sw_thermal_slowdown",),
    ("clocks_throttle_reasons.hw_power_brake_slowdown",),
)
_MEANING = {
    "remapped_rows.pending": "a memory repair waits for a reset of the GPU",
    "remapped_rows.failure": "a memory repair has failed",
    "clocks_throttle_reasons.hw_thermal_slowdown": "slowed down because it is too hot (hardware)",
    "clocks_throttle_reasons.sw_thermal_slowdown": "slowed down because it is too hot (driver)",
    "clocks_throttle_reasons.hw_power_brake_slowdown": "slowed down by its power supply",
}


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
        """What makes this GPU unfit: uncorrected memory errors, failed repairs, slow-down by heat or power."""
        found = [meaning for name, meaning in _MEANING.items() if self.health.get(name) in ("Yes", "Active", "1")]
        errors = self.health.get("ecc.errors.uncorrected.volatile.total", "0")
        if errors.isdigit() and int(errors):
            found.insert(0, f"{errors} uncorrected memory (ECC) errors since the driver was loaded")
        return [f"GPU {self.index}: {problem}" for problem in found]


def query_gpus() -> list[Gpu]:
    """All GPUs that this process may see, by the driver's order; none where there is no nvidia-smi.

    Raises:
        OSError: nvidia-smi is there and fails.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    base = _query(_BASE)
    if base is None:
        raise OSError("nvidia-smi fails: " + _nvidia_smi(["-L"])[1])
    answers = {fields[0]: rows for fields in _HEALTH if (rows := _query(fields)) is not None}
    return parse_gpus(base, answers)


def parse_gpus(base: Sequence[Sequence[str]], health: Mapping[str, Sequence[Sequence[str]]]) -> list[Gpu]:
    """nvidia-smi's rows (csv, noheader, nounits) -> GPUs."""
    return [
        Gpu(
            index=int(index),
            uuid=uuid,
            name=name,
            memory_mib=_number(total),
            used_mib=_number(used),
            driver=driver,
            compute_capability=capability,
            health={name: rows[i][0] for name, rows in health.items()},
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


def _query(fields: Sequence[str]) -> list[list[str]] | None:
    code, output = _nvidia_smi([f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])
    return [row for row in csv.reader(output.splitlines(), skipinitialspace=True) if row] if code == 0 else None


def _nvidia_smi(arguments: Sequence[str]) -> tuple[int, str]:
    try:
        run = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return 1, f"no answer in {_TIMEOUT_S:.0f} s"
    return run.returncode, run.stdout if run.returncode == 0 else (run.stdout + run.stderr).strip()


def _number(text: str) -> int:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0
