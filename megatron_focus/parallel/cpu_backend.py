"""Runs Megatron-Core on CPUs and gloo, where torch has no CUDA.

Megatron-Core addresses ``torch.cuda`` directly. ``enable_cpu_backend`` answers those calls with their CPU meaning, so
that the very same model, schedule, optimizer and checkpoint code runs on a laptop. It is the only place in the project
that patches anything; ``initialize`` calls it on machines without CUDA, and nothing imports it elsewhere.
"""

import contextlib
from typing import Any

import megatron.core.optimizer as mcore_optimizer
import megatron.core.tensor_parallel.random as mcore_random
import torch
import torch._dynamo
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
    # Where Transformer Engine is installed, Megatron-Core builds its Adam, which needs a GPU.
    optimizer: Any = mcore_optimizer
    optimizer.Adam, optimizer.USING_PYTORCH_OPTIMIZER = torch.optim.AdamW, True
    # Megatron-Core compiles small fusions on first use; on a CPU that costs minutes of C++ and gains nothing.
    torch._dynamo.config.disable = True
    tracker: Any = mcore_random
    tracker._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    tracker._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    _CudaMeansCpu().__enter__()
