"""A plan is made on a machine that need not have what the cluster has."""

import importlib.util
from dataclasses import replace

from megatron_focus.config.schema import RunConfig
from megatron_focus.config.validation import validate


def missing_here(config: RunConfig) -> list[str]:
    """What the configuration needs on the cluster and this machine lacks, for people."""
    missing = []
    if config.model.transformer_impl == "transformer_engine" and not _installed("transformer_engine"):
        missing.append("Transformer Engine (model.transformer_impl=transformer_engine)")
    if config.data.decoder == "dali" and not _installed("nvidia", "nvidia.dali"):
        missing.append("NVIDIA DALI (data.decoder=dali)")
    return missing


def validate_plan(config: RunConfig, world_size: int) -> None:
    """``validate``, without what is only not installed on this machine.

    Raises:
        ValueError: the configuration cannot run on any machine.
    """
    if not missing_here(config):
        validate(config, world_size)
        return
    if config.model.transformer_impl == "transformer_engine" and config.training.precision != "bf16":
        raise ValueError(
            f"training.precision={config.training.precision}: model.transformer_impl=transformer_engine attends packed "
            "rows in bf16 only"
        )
    installed = replace(
        config, model=replace(config.model, transformer_impl="local"), data=replace(config.data, decoder="cpu")
    )
    validate(installed, world_size)


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)
