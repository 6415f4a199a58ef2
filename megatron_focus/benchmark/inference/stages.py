"""Where the time of a prefill goes: marks at the borders of modules, which both models have under the same names."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

STAGES = ("vision", "vision sampler", "text sampler", "language model", "rest")
"""Tower and projector; the vision-guided sampler with the packing of its tokens; what the text-guided sampler puts
between two layers: scores, gather and a second mask; the layers, norm and head; and the rest: placement of the tokens
and the first mask."""


class StageClock:
    """Records when a forward pass enters and leaves its stages; a context manager.

    On CUDA the marks are events in the stream, so that nothing waits for them while the pass runs.

    Args:
        model: LLaVA-NeXT or a release.
        device: where it is.
        drop_layer: the decoder layer before which tokens are dropped; None where none are. Not 0.
    """

    def __init__(self, model: Any, device: torch.device, drop_layer: int | None) -> None:
        self._device = device
        self._marks: dict[str, Any] = {}
        body = model.model
        layers = body.language_model.layers
        begins: list[tuple[str, nn.Module]] = [("vision", body.vision_tower.embeddings), ("language model", layers[0])]
        ends: list[tuple[str, nn.Module]] = [("vision", body.multi_modal_projector), ("language model", model.lm_head)]
        if (sampler := getattr(body, "vision_sampler", None)) is not None:
            begins.append(("vision sampler", sampler))
            ends.append(("vision sampler", sampler))
        if drop_layer is not None:
            begins.append(("text sampler", layers[drop_layer - 1]))  # begins where that layer ends
            ends.append(("text sampler", layers[drop_layer]))
        self._begins, self._ends = begins, ends
        self._hooks = ExitStack()

    def __enter__(self) -> "StageClock":
        self._marks.clear()
        for stage, module in self._begins:
            after = stage == "text sampler"
            self._hook(module, f"{stage} begins", after)
        for stage, module in self._ends:
            self._hook(module, f"{stage} ends", stage != "text sampler")
        self._mark("begins")
        return self

    def __exit__(self, *error: object) -> None:
        self._mark("ends")
        self._hooks.close()

    def seconds(self) -> dict[str, float]:
        """Seconds of each of ``STAGES``, and of the whole under ``total``; once the pass is over."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        found = {stage: self._between(stage) for stage in STAGES if f"{stage} begins" in self._marks}
        found = {stage: found.get(stage, 0.0) for stage in STAGES}
        found["language model"] -= found["text sampler"]  # which lies within it
        total = self._elapsed(self._marks["begins"], self._marks["ends"])
        return found | {"rest": total - sum(found.values()), "total": total}

    def _between(self, stage: str) -> float:
        return self._elapsed(self._marks[f"{stage} begins"], self._marks[f"{stage} ends"])

    def _elapsed(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) / 1000 if self._device.type == "cuda" else float(end - begin)

    def _mark(self, name: str) -> None:
        if self._device.type == "cuda":
            self._marks[name] = torch.cuda.Event(enable_timing=True)
            self._marks[name].record(torch.cuda.current_stream(self._device))
        else:
            self._marks[name] = time.perf_counter()

    def _hook(self, module: nn.Module, name: str, after: bool) -> None:
        mark: Callable[..., None] = lambda *_: self._mark(name)  # noqa: E731 (hooks return None)
        register = module.register_forward_hook if after else module.register_forward_pre_hook
        self._hooks.callback(register(mark).remove)
