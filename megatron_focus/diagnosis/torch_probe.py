"""What torch says of itself, from a process of its own: a broken torch may end the process. Standard library alone."""

import json
import subprocess
import sys
from dataclasses import dataclass

_TIMEOUT_S = 120.0
_QUESTIONS = """
import json, torch
error = None
if torch.version.cuda and not torch.cuda.is_available():
    try:
        torch.cuda.init()
    except Exception as problem:
        error = str(problem).splitlines()[0]
nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else None
print(json.dumps({
    "cuda": torch.version.cuda,
    "nccl": ".".join(map(str, nccl)) if nccl else None,
    "devices": torch.cuda.device_count(),
    "error": error,
}))
"""


@dataclass(frozen=True, kw_only=True)
class TorchFacts:
    """Torch's own view."""

    cuda: str | None = None
    """CUDA version that it was built with."""
    nccl: str | None = None
    devices: int = 0
    """GPUs that it can use."""
    error: str | None = None
    """Why it cannot use CUDA although it was built with it."""


def probe_torch() -> TorchFacts | None:
    """Ask torch; None if it cannot be imported."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", _QUESTIONS], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return TorchFacts(**json.loads(run.stdout.splitlines()[-1]))
