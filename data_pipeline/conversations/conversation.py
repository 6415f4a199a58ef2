"""Conversations in LLaVA's form: checking them and taking their turns."""

import reprlib
from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.conversations.chat_templates import IMAGE_TOKEN
from data_pipeline.errors import SampleError

_ROLES: dict[Any, Literal["user", "assistant"]] = {"human": "user", "gpt": "assistant"}

# A value for a message, cut where it is long or deep.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class Turn:
    """One turn. Images are ``<image>`` in the text of a user turn; in an answer it is text like any other."""

    role: Literal["user", "assistant"]
    text: str


def parse_conversation(conversations: Any, num_images: int) -> list[Turn]:
    """Check LLaVA's ``conversations`` (a list of ``{"from": "human" | "gpt", "value": text}``) and take the turns.

    Where a user turn has one ``<image>``, it is moved to the front with a newline after it, as LLaVA does. Several in
    one turn stay where they are, because the text may refer to their places.

    Raises:
        SampleError: naming the key and the value that are wrong; the caller adds the file and the sample's id.
    """
    if not isinstance(conversations, list) or not conversations:
        raise SampleError(
            "no conversation", f"key conversations: expected a list of turns, not {_shown(conversations)}"
        )
    turns = [_turn(index, entry) for index, entry in enumerate(conversations)]
    if turns[-1].role == "user":
        last = len(turns) - 1
        raise SampleError(
            "no answer", f"key conversations[{last}]: the last question has no answer: {_shown(turns[last].text)}"
        )
    placeholders = sum(turn.text.count(IMAGE_TOKEN) for turn in turns if turn.role == "user")
    if placeholders != num_images:
        raise SampleError(
            "image count mismatch",
            f"key conversations: {placeholders} {IMAGE_TOKEN} in the questions, but {num_images} images",
        )
    return [_image_first(turn) for turn in turns]


def _turn(index: int, entry: Any) -> Turn:
    key = f"key conversations[{index}]"
    if not isinstance(entry, dict):
        raise SampleError("broken turn", f"{key}: expected an object with from and value, not {_shown(entry)}")
    speaker, text = entry.get("from"), entry.get("value")
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise SampleError("unknown role", f"{key}.from: expected human or gpt, not {_shown(speaker)}")
    expected = "gpt" if index % 2 else "human"
    if speaker != expected:
        raise SampleError(
            "turns out of order", f"{key}.from: expected {expected}, not {_shown(speaker)}: human first, gpt follows"
        )
    if not isinstance(text, str) or not text.strip():
        raise SampleError("empty text", f"{key}.value: expected a text that is not empty, not {_shown(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SampleError("broken text", f"{key}.value: half of a surrogate pair in {_shown(text)}") from None
    return Turn(role=_ROLES[speaker], text=text.strip())


def _image_first(turn: Turn) -> Turn:
    if turn.role == "user" and turn.text.count(IMAGE_TOKEN) == 1:
        rest = turn.text.replace(IMAGE_TOKEN, "").strip()
        return Turn(role="user", text=f"{IMAGE_TOKEN}\n{rest}".strip())
    return turn


def _shown(value: Any) -> str:
    return _SHORT.repr(value)
