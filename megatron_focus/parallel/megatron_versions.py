"""What differs between the two versions of Megatron-Core that run here: 0.16 (Python 3.11) and 0.19 (from 3.12 on).

The only place that looks at the version. ``setup.py`` pins both.
"""

from functools import partial
from pathlib import Path
from typing import Any

from megatron.core import package_info
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec

_IS_0_19 = (package_info.MAJOR, package_info.MINOR) >= (0, 19)

# 0.19 would hand the writing to nvidia-resiliency-ext unless told otherwise; 0.16 knows its own writer alone.
SAVE_OPTIONS: dict[str, Any] = {"async_strategy": "mcore"} if _IS_0_19 else {}
"""Further arguments of ``dist_checkpointing.save``, for a checkpoint that Megatron writes itself."""


def mlp_spec(submodules: MLPSubmodules) -> Any:
    """The MLP of a layer's spec: 0.19 calls it with its process groups, 0.16 builds it from a ``ModuleSpec``."""
    if _IS_0_19:
        return partial(MLP.as_mlp_submodule, submodules=submodules)
    return ModuleSpec(module=MLP, submodules=submodules)


def check_readable(folder: Path) -> None:
    """Refuse a checkpoint of the newer version: its plain values are among the tensors, where 0.16 does not look.

    Raises:
        ValueError: ``folder`` is one, and this is 0.16; names both.
    """
    if not _IS_0_19 and (folder / "metadata.json").exists() and not (folder / COMMON_STATE_FNAME).exists():
        raise ValueError(
            f"checkpoint {folder} was written with megatron-core 0.19, which megatron-core "
            f"{package_info.__version__} cannot read: use Python 3.12 or newer with the project installed there"
        )
