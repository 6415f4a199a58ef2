"""Conversations with a release, and what its model reads of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from megatron_focus.inference.release_folder import Release


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; what is said to the model may begin with pictures."""

    role: str
    """``user`` or ``assistant``."""
    text: str
    pictures: tuple[Image.Image, ...] = ()


def model_inputs(release: Release, conversations: Sequence[Sequence[Turn]]) -> Any:
    """What the model reads before it answers, one row a conversation, on its device.

    Shorter rows are padded on the left by the release's processor.

    Raises:
        ValueError: if a text has the token that stands for a picture.
    """
    messages: list[Any] = []
    for turns in conversations:
        for turn in turns:
            check_text(release, turn.text)
        messages.append([{"role": turn.role, "content": _content(turn)} for turn in turns])
    form: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
    inputs: Any = release.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=form
    )
    return inputs.to(release.model.device, release.model.dtype)


def check_text(release: Release, text: str) -> None:
    """Refuse a text that would be taken for a picture.

    Raises:
        ValueError: if the text has the token that stands for one.
    """
    token = release.processor.image_token
    if token in text:
        raise ValueError(
            f"the text has {token!r}, which stands for a picture: give the picture itself, which is put in front of it"
        )


def _content(turn: Turn) -> list[dict[str, Any]]:
    """The pictures, then the text."""
    return [*({"type": "image", "image": picture} for picture in turn.pictures), {"type": "text", "text": turn.text}]
