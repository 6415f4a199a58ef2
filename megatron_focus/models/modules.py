"""The modules that users name to freeze them or to give them a learning rate of their own."""

from collections.abc import Iterable

import torch


def module_of(parameter_name: str) -> str:
    """``vision_tower``, ``projector``, ``vision_sampler`` or ``language_model``, from a parameter's name.

    Wrappers' ``module.`` prefixes are ignored. The newline embedding counts as part of the projector, as in LLaVA.
    """
    while parameter_name.startswith("module."):
        parameter_name = parameter_name.removeprefix("module.")
    top = parameter_name.split(".")[0]
    if top == "image_newline":
        return "projector"
    return top if top in ("vision_tower", "projector", "vision_sampler") else "language_model"


def freeze_modules(chunks: Iterable[torch.nn.Module], modules: list[str]) -> None:
    """Stop training the parameters of ``modules``; call it before the model is wrapped for data parallelism."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if module_of(name) in modules:
                parameter.requires_grad_(False)
