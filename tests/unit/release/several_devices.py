"""Models whose weights are not all where the inputs are, on a machine of one device.

``Places`` gives every tensor a place, and what mixes places fails as on GPUs.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

HOME, SECOND, THIRD = (torch.device("cpu", index) for index in range(3))


class Places(TorchFunctionMode):
    """While it is on, ``device`` says a tensor's place, and ``to`` and ``device=`` change or choose it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.device.__get__:
            return _place(args[0])
        kwargs = dict(kwargs or {})
        wanted = kwargs.pop("device", None)
        if func is Tensor.to:
            moves = [a for a in args[1:] if isinstance(a, torch.device | str)]
            wanted = wanted or (moves[0] if moves else None)
            args = tuple(a for a in args if not isinstance(a, torch.device | str))
            if len(args) == 1 and not kwargs:
                args = (*args, "cpu")
        # A number can be anywhere.
        places = {_place(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()}
        if len(places) > 1 and func is not Tensor.to:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {places}")
        place = torch.device(wanted) if wanted is not None else next(iter(places), HOME)

        def put(tensor: Tensor) -> Tensor:
            # What moves is another tensor.
            moved = tensor.view_as(tensor) if wanted is not None and _place(tensor) != place else tensor
            moved._place = place
            return moved

        return tree_map_only(Tensor, put, func(*args, **kwargs))


def _place(tensor: Tensor) -> torch.device:
    return getattr(tensor, "_place", HOME)


def put(module: nn.Module, place: torch.device) -> None:
    """Put a module's weights somewhere; its inputs follow when it is called, as accelerate's hooks do it."""

    def move(tree: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.to(place), tree)

    for tensor in (*module.parameters(), *module.buffers()):
        tensor._place = place
    module.register_forward_pre_hook(lambda _, args, kwargs: (move(args), move(kwargs)), with_kwargs=True)


def offload(module: nn.Module) -> None:
    """Have weights only while the part that owns them is called, as accelerate's hooks do it with a CPU or a disk."""
    module._hf_hook = SimpleNamespace(execution_device="cpu")
    for part in module.modules():
        weights = dict(part.named_parameters(recurse=False))
        if not weights:
            continue
        absent = {name: nn.Parameter(weight.to("meta"), requires_grad=False) for name, weight in weights.items()}

        def load(part: nn.Module, *_: Any, weights: dict[str, nn.Parameter] = weights) -> None:
            part._parameters.update(weights)

        def drop(part: nn.Module, *_: Any, absent: dict[str, nn.Parameter] = absent) -> None:
            part._parameters.update(absent)

        drop(part)
        part.register_forward_pre_hook(load)
        part.register_forward_hook(drop)
