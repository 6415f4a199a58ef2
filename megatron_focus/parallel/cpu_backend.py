"""Runs Megatron-Core on CPUs and gloo, where torch has no CUDA.

Megatron-Core addresses ``torch.cuda`` directly. ``enable_cpu_backend`` answers those calls with their CPU meaning, so
that the very same model, schedule, optimizer and checkpoint code runs on a laptop. It is the only place in the project
that patches anything; ``initialize`` calls it on machines without CUDA, and nothing imports it elsewhere.
"""

import contextlib
from typing import Any

import megatron.core.optimizer as mcore_optimizer
import megatron.core.optimizer.distrib_optimizer as mcore_distributed_optimizer
import megatron.core.tensor_parallel.random as mcore_random
import torch
import torch._dynamo
from torch.optim.adamw import adamw
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


class _CudaMeansCpu(TorchFunctionMode):
    """Sends tensors that are asked for on "cuda" to the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to:
            args = tuple(_CPU if _is_cuda(arg) else arg for arg in args)
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # The distributed optimizer sorts parameters by the CUDA names of their types.
            return func(*args).replace("torch.", "torch.cuda.")
        return func(*args, **kwargs)


class _Stream:
    """A stream of a device on which everything is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    wait_stream = wait_event = synchronize = record = _nothing


class _Event(_Stream):
    """An event of such a device."""


class _FusedAdam(torch.optim.Optimizer):
    """AdamW that counts steps per parameter group, as the fused Adams of Transformer Engine and apex do.

    Megatron-Core's distributed optimizer saves and loads no other: it falls back to torch's AdamW, whose count per
    parameter it then cannot load, and cannot save on a rank without trainable parameters.
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
            adamw(
                parameters,
                [p.grad for p in parameters],
                [self.state[p]["exp_avg"] for p in parameters],
                [self.state[p]["exp_avg_sq"] for p in parameters],
                [],
                [torch.tensor(group["step"] - 1.0) for _ in parameters],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )


def _is_cuda(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and str(device).startswith("cuda")


def enable_cpu_backend() -> None:
    """Give ``torch.cuda`` its CPU meaning for this process. Calling it again changes nothing.

    Raises:
        RuntimeError: torch has CUDA here, so Megatron-Core needs no help.
    """
    if torch.cuda.is_available():
        raise RuntimeError("the CPU backend is for machines without CUDA")
    if torch.cuda.Stream is _Stream:
        return

    cuda: Any = torch.cuda
    # One function for each name: torch.compile's rules refuse one object that stands under two of torch's names.
    cuda.current_device = lambda: _CPU
    cuda.synchronize = lambda device=None: None
    cuda.set_device = lambda device: None
    cuda.current_stream = lambda device=None: _Stream()
    cuda.default_stream = lambda device=None: _Stream()
    cuda.Stream = _Stream
    cuda.Event = _Event
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.get_rng_state = lambda device="cuda": torch.get_rng_state()
    cuda.set_rng_state = lambda state, device="cuda": torch.set_rng_state(state)
    cuda.random.get_rng_state = lambda device="cuda": torch.get_rng_state()
    cuda.random.set_rng_state = lambda state, device="cuda": torch.set_rng_state(state)
    cuda.manual_seed = lambda seed: torch.manual_seed(seed)
    optimizer: Any = mcore_optimizer
    optimizer.Adam, optimizer.USING_PYTORCH_OPTIMIZER = _FusedAdam, False
    distributed: Any = mcore_distributed_optimizer
    distributed.Adam = _FusedAdam
    distributed.HAVE_APEX_OR_TE = distributed.USING_TE_OPTIMIZER = True
    # Megatron-Core compiles small fusions on first use; on a CPU that costs minutes of C++ and gains nothing.
    torch._dynamo.config.disable = True
    tracker: Any = mcore_random
    tracker._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    tracker._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    _CudaMeansCpu().__enter__()
