"""One model under one setting of its samplers, on one batch: a prefill and some decoding, timed."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_focus.benchmark.inference.memory import peak_memory
from megatron_focus.benchmark.inference.stages import StageClock
from megatron_focus.benchmark.inference.work import Lengths
from megatron_focus.benchmark.presets import Setting


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One run."""

    stages: dict[str, float]
    """Seconds of each stage of the prefill, and ``total``."""
    decode: float
    """Seconds for a new token of every row."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What does not depend on time."""

    lengths: Lengths
    cache_bytes: int
    """Keys and values of all layers after the prefill."""
    peak_bytes: int
    """Most memory of the prefill and of decoding, the cache included, beyond the weights."""


class Side:
    """Runs a model the way ``generate`` does with greedy search: prefill with a cache, then token by token.

    Args:
        model: LLaVA-NeXT, or a release with its samplers.
        setting: of the release's samplers; None for LLaVA-NeXT.
        drop_layer: of the release's text-guided sampler.
        inputs: the batch, without padding.
        new_tokens: tokens to decode in each run.
    """

    def __init__(
        self, model: Any, setting: Setting | None, drop_layer: int, inputs: dict[str, Tensor], new_tokens: int
    ) -> None:
        self._model, self._setting, self._inputs, self._new_tokens = model, setting, inputs, new_tokens
        self._device = inputs["input_ids"].device
        drops = setting is not None and setting.text
        self._drop_layer = drop_layer if drops else None
        self.timings: list[Timing] = []

    def run(self) -> None:
        """Time one run and keep it in ``timings``."""
        with torch.no_grad():
            self._switch()
            with StageClock(self._model, self._device, self._drop_layer) as prefill:
                output = self._prefill()
            stages = prefill.seconds()  # waits for the device
            start = time.perf_counter()
            self._decode(output)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        self.timings.append(Timing(stages=stages, decode=(time.perf_counter() - start) / self._new_tokens))

    def footprint(self) -> Footprint:
        """Lengths, cache and memory of one run."""
        found: dict[str, Any] = {}

        def job() -> None:
            output = self._prefill()
            cache = output.past_key_values
            found["cache_bytes"] = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
            found["lengths"] = self._lengths(cache)
            self._decode(output)

        with torch.no_grad():
            self._switch()
            peak = peak_memory(job, self._device)
        return Footprint(**found, peak_bytes=peak)

    def _lengths(self, cache: Any) -> Lengths:
        if self._setting is None:  # no row has padding
            rows, tokens = len(self._inputs["input_ids"]), cache.layers[0].keys.shape[2]
            return Lengths(before=[tokens] * rows, behind=[tokens] * rows)
        return Lengths(before=cache.all_mask.sum(1).tolist(), behind=cache.kept_mask.sum(1).tolist())

    def _switch(self) -> None:
        if self._setting is not None:
            self._model.set_samplers(vision=self._setting.vision, text=self._setting.text)

    def _prefill(self) -> Any:
        return self._model(**self._inputs, use_cache=True, logits_to_keep=1)

    def _decode(self, output: Any) -> None:
        mask = self._inputs["attention_mask"]
        for _ in range(self._new_tokens):
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(token)], dim=1)
            output = self._model(
                input_ids=token,
                attention_mask=mask,
                past_key_values=output.past_key_values,
                use_cache=True,
                logits_to_keep=1,
            )
