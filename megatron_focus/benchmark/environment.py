"""Where a benchmark ran: versions, device and command, for its report."""

import os
import platform
import sys
from importlib.metadata import version
from typing import Any

import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and command."""
    packages = ("torch", "megatron-core", "transformers")
    return {name: version(name) for name in packages} | {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "command": " ".join(["python", *sys.argv]),
    }


def _cpu_name() -> str:
    """Capability that torch's kernels use, beside the architecture."""
    return f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"
