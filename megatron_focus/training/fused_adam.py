"""Whose fused AdamW updates the weights.

Megatron takes what it finds at import: Transformer Engine's, else apex', else torch's. Here the choice is a setting,
and the run says what was taken.
"""

from typing import Any

import torch
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from torch.optim.adamw import adamw

from megatron_focus.config.checks.installed import has_nvidia_apex, is_installed

NAMES = {"transformer_engine": "Transformer Engine", "apex": "NVIDIA apex", "torch": "torch"}


def chosen_adam(setting: str | None) -> str:
    """The setting; where it is null, the best that is here.

    Raises:
        ValueError: it needs a GPU, and there is none.
    """
    if not torch.cuda.is_available():
        if setting not in (None, "torch"):
            raise ValueError(f"optimizer.fused_adam={setting} needs a GPU; use torch, or leave it null")
        return "torch"
    if setting is not None:
        return setting
    if is_installed("transformer_engine"):
        return "transformer_engine"
    return "apex" if has_nvidia_apex() else "torch"


def use_adam(optimizer: MegatronOptimizer, choice: str) -> None:
    """Put the chosen AdamW into Megatron's optimizer, before its first step."""
    kind = _kind(choice)
    for part in optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]:
        if part.optimizer is not None and not isinstance(part.optimizer, kind):
            settings = {key: part.optimizer.defaults[key] for key in ("lr", "betas", "eps", "weight_decay")}
            replacement = kind([{"params": []}], adam_w_mode=True, **settings)
            # As Megatron does: the distributed optimizer's parts of parameters are views, which no optimizer accepts.
            replacement.param_groups = [replacement.defaults | group for group in part.optimizer.param_groups]
            part.optimizer = replacement


def _kind(choice: str) -> Any:
    if choice == "transformer_engine":
        from transformer_engine.pytorch.optimizers import FusedAdam as TransformerEngineAdam  # optional

        return TransformerEngineAdam
    if choice == "apex":
        from apex.optimizers import FusedAdam as ApexAdam  # optional

        return ApexAdam
    return TorchAdam


class TorchAdam(torch.optim.Optimizer):
    """torch's fused AdamW, which counts steps per parameter group, as those of Transformer Engine and apex do.

    A checkpoint then holds one count for all ranks, also for one that updates no parameter.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, adam_w_mode: bool
    ) -> None:
        assert adam_w_mode
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                    self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
            if not parameters:
                continue
            count = parameters[0].new_full((), group["step"] - 1.0, dtype=torch.float32)
            adamw(
                parameters,
                [p.grad for p in parameters],
                [self.state[p]["exp_avg"] for p in parameters],
                [self.state[p]["exp_avg_sq"] for p in parameters],
                [],
                list(count.repeat(len(parameters)).unbind()),
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
