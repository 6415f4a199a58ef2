"""What a GPU run needs to repeat itself bit for bit (``training.deterministic``)."""

import os
from collections.abc import MutableMapping

import torch

# What libraries read when they are first used, and the values that are right.
_TRANSFORMER_ENGINE = "NVTE_ALLOW_NONDETERMINISTIC_ALGO"
_CUBLAS, _CUBLAS_VALUES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")  # NVIDIA, cuBLAS, "Results Reproducibility"
# As Megatron-LM's --deterministic-mode asks for. NVLS sums inside the switch, in an order of its own.
_NCCL, _NCCL_VALUES = "NCCL_ALGO", ("Ring", "Tree", "CollnetDirect", "CollnetChain", "^NVLS")


def require_determinism(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make torch, cuBLAS, Transformer Engine and NCCL choose algorithms that repeat themselves, for this process.

    To be called before any of them has touched the GPU. What the environment says already is kept if it will do.

    Raises:
        ValueError: the environment says otherwise.
    """
    for name, allowed in ((_TRANSFORMER_ENGINE, ("0",)), (_CUBLAS, _CUBLAS_VALUES), (_NCCL, _NCCL_VALUES)):
        value = environment.setdefault(name, allowed[0])
        if value not in allowed:
            raise ValueError(
                f"training.deterministic=true, but the environment has {name}={value}: unset it, or use one of "
                f"{', '.join(allowed)}"
            )
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
