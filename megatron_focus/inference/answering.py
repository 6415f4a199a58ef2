"""One answer of a released model, streamed, with what the samplers kept and how long it took."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextStreamer

from megatron_focus.inference.conversation import Turn, model_inputs
from megatron_focus.inference.release_folder import Release
from megatron_focus.release.selection import ImageSelection


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    """Divides the logits before sampling; 0 takes the likeliest token."""

    def arguments(self) -> dict[str, Any]:
        """For ``generate``."""
        if self.temperature > 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": True, "temperature": self.temperature}
        return {"max_new_tokens": self.max_new_tokens, "do_sample": False}


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    new_tokens: int
    """The one that ends the answer counted."""
    selection: list[ImageSelection]
    """One for each picture of the conversation."""
    first_seconds: float
    """From the question to the first token: the processor and the prompt."""
    seconds: float
    """From the question to the last token."""

    def summary(self) -> str:
        """One line: the visual tokens and the time."""
        parts = []
        if self.selection:
            baseline = sum(s.baseline_tokens for s in self.selection)
            read, kept = (sum(getattr(s, n) for s in self.selection) for n in ("num_tokens", "num_kept"))
            layer = self.selection[0].drop_layer
            dropped = f", {kept} from layer {layer}" if layer is not None else ""
            parts.append(f"kept {kept} of {baseline} visual tokens ({kept / baseline:.0%}; {read} read{dropped})")
        rest, later = self.seconds - self.first_seconds, self.new_tokens - 1
        pace = f", then {later / rest:.1f} tokens/s" if later and rest > 0 else ""
        parts.append(
            f"{self.new_tokens} new tokens in {self.seconds:.2f} s (first after {self.first_seconds:.2f} s{pace})"
        )
        return "; ".join(parts)


class _Stream(TextStreamer):
    """Hands on the text as words are finished, and notes when the first token came."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write
        self.first: float | None = None

    def put(self, value: Any) -> None:
        """Take the prompt, then each token."""
        if self.first is None and not self.next_tokens_are_prompt:
            self.first = time.perf_counter()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand on the text."""
        if text:
            self.write(text)


def answer(release: Release, turns: list[Turn], decoding: Decoding, write: Callable[[str], None]) -> Answer:
    """Ask for the next turn of a conversation.

    The whole conversation is read anew, so that the text-guided sampler selects for all of its questions, as in
    training; a cache of earlier turns would lack tokens that they did not ask for.

    Args:
        release: the model.
        turns: the conversation so far; the user's turn is last.
        decoding: how tokens are chosen.
        write: called with each piece of the answer.

    Raises:
        ValueError: if a text has the token that stands for a picture.
    """
    start = time.perf_counter()
    inputs = model_inputs(release, [turns])
    stream = _Stream(release.processor.tokenizer, write)
    with torch.inference_mode():
        output = release.model.generate(
            **inputs, **decoding.arguments(), streamer=stream, return_dict_in_generate=True, output_selection=True
        )
    end = time.perf_counter()
    said = output.sequences[0, inputs["input_ids"].shape[1] :]
    text = release.processor.decode(said, skip_special_tokens=True).strip()
    first = end if stream.first is None else stream.first
    return Answer(text, len(said), output.selection, first - start, end - start)
