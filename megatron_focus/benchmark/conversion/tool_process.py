"""Time and memory of one of the tools, in a process of its own:

python -m megatron_focus.benchmark.conversion.tool_process MODULE ARGUMENT...
"""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_IMPORTED_LATER = tuple(
    f"megatron_focus.conversion.{name}" for name in ("checkpoint_reader", "export", "import_sources", "importing")
)
"""What the tools import once their arguments are read; it counts as libraries."""


@dataclass(frozen=True, kw_only=True)
class ToolRun:
    """What one run of a tool took."""

    seconds: float
    """Of its ``main``, without the imports."""
    libraries: int
    """Bytes that the process had when the tool and what it uses were imported: interpreter and libraries."""
    memory: int
    """Bytes at the peak, beyond ``libraries``."""


def run_tool(module: str, arguments: Sequence[str]) -> ToolRun:
    """Run ``module.main(arguments)`` and measure it.

    Raises:
        ValueError: it failed; what it said is the message.
    """
    command = [sys.executable, "-m", "megatron_focus.benchmark.conversion.tool_process", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"{module} {' '.join(arguments)} failed: {done.stderr.strip() or done.returncode}")
    return ToolRun(**json.loads(done.stdout.splitlines()[-1]))


def memory(key: str) -> int:
    """Bytes of this process: ``VmRSS``, what it has now, or ``VmHWM``, the most it ever had."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def main(arguments: list[str]) -> int:
    """Run the tool; the measurement is the last line of standard output, as JSON."""
    tool = importlib.import_module(arguments[0])
    for module in _IMPORTED_LATER:
        importlib.import_module(module)
    # What it has now, not its peak: a peak of the imports must not hide one of the tool.
    libraries, start = memory("VmRSS"), time.perf_counter()
    code = tool.main(arguments[1:])
    seconds = time.perf_counter() - start
    found = ToolRun(seconds=seconds, libraries=libraries, memory=memory("VmHWM") - libraries)
    print(json.dumps(asdict(found)))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
