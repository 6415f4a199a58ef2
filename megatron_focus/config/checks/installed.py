"""What a configuration needs and this machine may lack. A plan for another machine leaves these out."""

import importlib.util

from megatron_focus.config.schema import RunConfig

_NO_TE = "Transformer Engine is not installed: install the 'gpu' extra"
_NO_APEX = "NVIDIA apex is not installed (tools/doctor.py shows how): install it"


def installation_problems(config: RunConfig) -> list[str]:
    """One sentence for each package that is not installed here."""
    problems = []
    if config.model.transformer_impl == "transformer_engine" and not is_installed("transformer_engine"):
        problems.append(
            "model.transformer_impl=transformer_engine, but Transformer Engine is not installed: install the 'gpu' "
            "extra, or set model.transformer_impl=local"
        )
    problems += _adam_problems(config) + _fusion_problems(config)
    if config.data.decoder == "dali" and not is_installed("nvidia.dali"):
        problems.append("data.decoder=dali needs NVIDIA DALI: pip install -e '.[gpu]', or set data.decoder=cpu")
    return problems


def _adam_problems(config: RunConfig) -> list[str]:
    choice = config.optimizer.fused_adam
    if choice == "transformer_engine" and not is_installed("transformer_engine"):
        return [f"optimizer.fused_adam={choice}, but {_NO_TE}, or set optimizer.fused_adam=torch"]
    if choice == "apex" and not has_nvidia_apex():
        return [f"optimizer.fused_adam={choice}, but {_NO_APEX}, or set optimizer.fused_adam=torch"]
    return []


def _fusion_problems(config: RunConfig) -> list[str]:
    parallel, problems = config.parallel, []
    fuses_layers = config.model.transformer_impl == "transformer_engine"
    if parallel.gradient_accumulation_fusion and not fuses_layers and not has_fused_weight_gradient():
        problems.append(
            f"parallel.gradient_accumulation_fusion=true with model.transformer_impl=local, but {_NO_APEX}, use "
            "model.transformer_impl=transformer_engine, or set it to false"
        )
    if parallel.cross_entropy_fusion_impl == "te" and not is_installed("transformer_engine"):
        problems.append(f"parallel.cross_entropy_fusion_impl=te, but {_NO_TE}, or set it to native")
    return problems


def has_nvidia_apex() -> bool:
    """Whether NVIDIA's apex is here, which its optimizers tell from the unrelated package of that name."""
    return is_installed("apex.optimizers")


def has_fused_weight_gradient() -> bool:
    """Whether apex was built with the kernel that adds weight gradients to a buffer."""
    return is_installed("fused_weight_gradient_mlp_cuda")


def is_installed(module: str) -> bool:
    """Whether the module can be found; it is not imported, but the package that it is in is."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # not even the package that it is in
        return False
