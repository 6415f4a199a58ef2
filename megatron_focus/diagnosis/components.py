"""The optional packages: what each enables, and the line that installs it. Standard library alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_focus.diagnosis.apex import inspect_apex
from megatron_focus.diagnosis.packages import Package, inspect_packages
from megatron_focus.diagnosis.requirements import Requirement


@dataclass(frozen=True)
class Component:
    """An optional package."""

    name: str
    enables: str
    requirement: str = ""
    """Distribution that brings it, where that is another one."""
    extra: str | None = None
    """Extra of the project that pins it; None: the project does not."""
    flags: str = ""
    """Of pip."""


DALI, DALI_CUDA_12 = "nvidia-dali-cuda130", "nvidia-dali-cuda120"
COMPONENTS = (
    Component(
        "transformer-engine",
        "fused attention and fused Adam on GPUs (model.transformer_impl=transformer_engine)",
        extra="gpu",
        flags="--no-build-isolation ",  # its PyTorch part is compiled against the torch that is there
    ),
    Component(DALI, "decoding on the GPU (data.decoder=dali)", extra="dali"),
    Component(
        "flash-attn",
        'Transformer Engine\'s attention on GPUs older than H100; attn_implementation="flash_attention_2" in releases',
        flags="--no-build-isolation ",
    ),
    Component("s3fs", "data sets at s3:// (data.path)", extra="remote"),
    Component("aiohttp", "data sets at http:// and https:// (data.path)", requirement="fsspec", extra="remote"),
    Component("gradio", "the web demo (examples/demo)", extra="demo"),
)
APEX_ENABLES = "its fused Adam (optimizer.fused_adam), parallel.gradient_accumulation_fusion outside Transformer Engine"


@dataclass(frozen=True)
class FoundComponent:
    """One row of the table."""

    package: Package
    enables: str
    install: str


def inspect_components(requirements: Sequence[Requirement], torch_cuda: str | None) -> list[FoundComponent]:
    """Look for every optional package.

    Args:
        requirements: the project's.
        torch_cuda: CUDA version that torch was built with, e.g. ``13.0``; None without.
    """
    pinned = [built_for(torch_cuda, component, _pin(component, requirements)) for component in COMPONENTS]
    packages = inspect_packages(
        [
            (component.name, pin.versions if pin is not None and pin.name == component.name else "")
            for component, pin in pinned
        ]
    )
    found = [
        FoundComponent(package, component.enables, install_line(component, pin, torch_cuda))
        for (component, pin), package in zip(pinned, packages, strict=True)
    ]
    package, line = inspect_apex()
    return [found[0], FoundComponent(package, APEX_ENABLES, line), *found[1:]]


def built_for(
    torch_cuda: str | None, component: Component, pin: Requirement | None
) -> tuple[Component, Requirement | None]:
    """DALI has a package for each CUDA; the project pins the newer one's version, which the other has as well."""
    if component.name != DALI or not (torch_cuda or "").startswith("12"):
        return component, pin
    return replace(component, name=DALI_CUDA_12), None if pin is None else replace(pin, name=DALI_CUDA_12)


def install_line(component: Component, pin: Requirement | None, torch_cuda: str | None) -> str:
    """The exact line that installs a component, with the project's pin."""
    what = pin.line if pin is not None else component.requirement or component.name
    if component.name == "transformer-engine" and (torch_cuda or "").startswith("13"):
        # Without it, pip takes the core built for CUDA 12 (Transformer Engine's installation guide).
        what = what.replace("[pytorch]", "[pytorch,core_cu13]")
    return f"python -m pip install {component.flags}'{what}'"


def _pin(component: Component, requirements: Sequence[Requirement]) -> Requirement | None:
    name = component.requirement or component.name
    matching = [r for r in requirements if r.name == name and r.extra == component.extra and r.extra is not None]
    return matching[0] if matching else None
