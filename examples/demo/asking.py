"""Asks a released model with samplers set for one question, and measures prefill and decoding."""

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from examples.demo.streaming import streamed
from megatron_focus.inference.answering import Answer, Decoding, answer
from megatron_focus.inference.conversation import Turn
from megatron_focus.inference.release_folder import Release


@dataclass(frozen=True)
class Samplers:
    """How the samplers are set for one question."""

    vision: bool
    text: bool
    gamma: float
    """Counts where ``text`` is true."""
    text_layer: int
    """As ``gamma``."""

    @property
    def any_on(self) -> bool:
        """Whether there is something to compare with the uncompressed model."""
        return self.vision or self.text

    def arguments(self) -> dict[str, Any]:
        """For the model's ``set_samplers``."""
        numbers = {"gamma": self.gamma, "text_layer": self.text_layer} if self.text else {}
        return {"vision": self.vision, "text": self.text, **numbers}


UNCOMPRESSED = Samplers(vision=False, text=False, gamma=1.0, text_layer=0)
"""Both off: the model reads what LLaVA-NeXT reads."""


@dataclass(frozen=True)
class Measured:
    """One answer with its times."""

    answer: Answer
    prefill_seconds: float
    """From the prompt's start in the model to the first new token; preparing the tiles is not in it."""

    @property
    def token_seconds(self) -> float | None:
        """Seconds for each new token after the first; None where there is no other."""
        later = self.answer.new_tokens - 1
        return (self.answer.seconds - self.answer.first_seconds) / later if later else None


class Asker:
    """One model and the one thread that asks it: settings belong to the model, so questions wait for each other."""

    def __init__(self, release: Release, decoding: Decoding):
        self.release, self.decoding = release, decoding
        # The same thread for all, because the first pass of a thread is slower than the others.
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def ask(self, picture: Image.Image, question: str, samplers: Samplers) -> Generator[str, None, Measured]:
        """Yield the pieces of the answer, return the whole of it; afterwards the samplers are as before.

        Raises:
            ValueError: if the model cannot be set so or the question cannot be asked.
        """
        return streamed(self.executor, partial(self._measure, picture, question, samplers, self.decoding))

    def warm_up(self) -> None:
        """Answer two tokens with and without samplers: first passes are slower and would be counted."""
        config = self.release.model.config
        picture = Image.new("RGB", (config.vision_config.image_size,) * 2, "grey")
        for samplers in (trained_samplers(self.release), UNCOMPRESSED):
            work = partial(self._measure, picture, "?", samplers, Decoding(2), lambda text: None)
            self.executor.submit(work).result()

    def _measure(
        self,
        picture: Image.Image,
        question: str,
        samplers: Samplers,
        decoding: Decoding,
        write: Callable[[str], None],
    ) -> Measured:
        """In the model's thread."""
        model = self.release.model
        with _set_for_now(model, samplers), _forward_starts(model) as starts:
            begun = time.perf_counter()
            given = answer(self.release, [Turn("user", question, (picture,))], decoding, write)
        return Measured(given, given.first_seconds - (starts[0] - begun))


def trained_samplers(release: Release) -> Samplers:
    """As the release's configuration has them, within the ranges that the model can be set to."""
    config = release.model.config
    vision, text = config.vision_sampler, config.text_sampler
    last = config.text_config.num_hidden_layers - 1
    # A sampler that was off in training may carry a layer that the model does not have.
    return Samplers(vision["enabled"], text["enabled"], min(1.0, text["gamma"]), min(last, text["layer"]))


@contextmanager
def _set_for_now(model: Any, samplers: Samplers) -> Iterator[None]:
    """Samplers so, and as they were afterwards."""
    before = model.samplers
    model.set_samplers(**samplers.arguments())
    try:
        yield
    finally:
        # The settings themselves: set_samplers would refuse scales for a model without a vision-guided sampler.
        model.model.samplers = before


@contextmanager
def _forward_starts(model: Any) -> Iterator[list[float]]:
    """Seconds on ``time.perf_counter`` at which the model's passes begin."""
    starts: list[float] = []
    handle = model.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
    try:
        yield starts
    finally:
        handle.remove()
