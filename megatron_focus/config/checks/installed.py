"""What a configuration needs and this machine may lack. A plan for another machine leaves these out."""

import importlib.util

from megatron_focus.config.schema import RunConfig


def installation_problems(config: RunConfig) -> list[str]:
    """One sentence for each package that is not installed here."""
    problems = []
    if config.model.transformer_impl == "transformer_engine" and not _installed("transformer_engine"):
        problems.append(
            "model.transformer_impl=transformer_engine, but Transformer Engine is not installed: install the 'gpu' "
            "extra, or set model.transformer_impl=local"
        )
    if config.data.decoder == "dali" and not _installed("nvidia.dali"):
        problems.append("data.decoder=dali needs NVIDIA DALI: pip install -e '.[gpu]', or set data.decoder=cpu")
    return problems


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False
