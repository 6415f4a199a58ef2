"""Conversations in LLaVA's form: checking them and taking their turns."""

import reprlib
from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.conversations.chat_templates import IMAGE_TOKEN
from data_pipeline.errors import SampleError

_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

# A value for a message, cut where it is long or deep.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class Turn:
    """One turn. Images are ``<image>`` in the text of a user turn; in an answer it is text like any other."""

    role: Literal["user", "assistant"]
    text: str
    text_only: bool = False
    """Whether ``<image>`` is text in this user turn as well: its sample has no image."""

    @property
    def images(self) -> int:
        """How many images stand in it."""
        return self.text.count(IMAGE_TOKEN) if self.role == "user" and not self.text_only else 0

    def stored(self) -> dict[str, Any]:
        """What a shard holds of it; ``Turn(**stored)`` is the same turn."""
        text_only = {"text_only": True} if self.text_only else {}
        return {"role": self.role, "text": self.text, **text_only}


@dataclass(frozen=True)
class Conversation:
    """The turns of a sample, and what was changed to accept it."""

    turns: tuple[Turn, ...]
    """Question, answer, question, answer and so on."""
    changes: tuple[str, ...]
    """A few fixed words for each kind of change, see ``parse_conversation``; each kind once."""


def parse_conversation(conversations: Any, num_images: int, *, text_only: bool = False) -> Conversation:
    """Check LLaVA's ``conversations`` (a list of ``{"from": "human" | "gpt", "value": text}``) and take the turns.

    Where a user turn has one ``<image>``, it is moved to the front with a newline after it, as LLaVA does. Several in
    one turn stay where they are, because the text may refer to their places.

    Accepted with a change, as LLaVA's and LLaVA-NeXT's loaders do: ``user and assistant`` for human and gpt; ``role and
    content`` for from and value; ``system turn dropped`` and ``leading answer dropped`` before the first question (the
    chat template brings its own system message); ``trailing question dropped``, which has no label; ``<image> as text``
    in a sample that is text only.

    Args:
        conversations: what the data set says.
        num_images: images of the sample.
        text_only: the sample has no place for images, which makes ``<image>`` text like any other. Otherwise one that
            has no image says that a picture was lost.

    Raises:
        SampleError: naming the key and the value that are wrong; the caller adds the file and the sample's id.
    """
    if not isinstance(conversations, list) or not conversations:
        raise SampleError("no conversation", f"key conversations: expected a list of turns, not {shown(conversations)}")
    changes: dict[str, None] = {}  # in the order in which they were found
    roles = [_role(index, entry, changes) for index, entry in enumerate(conversations)]
    begin, end = _paired(roles, changes)
    if begin >= end or roles[end - 1] == "user":
        raise SampleError("no answer", f"key conversations: no answer to the last question: {shown(conversations)}")
    turns = [_turn(index, conversations[index], roles[index], index - begin) for index in range(begin, end)]
    placeholders = sum(turn.images for turn in turns)
    if text_only and placeholders:
        changes[f"{IMAGE_TOKEN} as text"] = None
        turns = [Turn(turn.role, turn.text, text_only=turn.images > 0) for turn in turns]
    elif placeholders != num_images:
        counts = f"{placeholders} {IMAGE_TOKEN} in the questions, but {num_images} images"
        dropped = conversations[-1]
        if end < len(roles) and IMAGE_TOKEN in str(dropped.get(_keys(dropped)[1])):
            counts += f": another {IMAGE_TOKEN} is in the last question, which has no answer and is dropped"
            raise SampleError("image in an unanswered question", f"key conversations: {counts}")
        reason = "image count mismatch" if placeholders else "image without placeholder"
        raise SampleError(reason, f"key conversations: {counts}")
    return Conversation(turns=tuple(map(_image_first, turns)), changes=tuple(changes))


def shown(value: Any) -> str:
    """A value for a message, in about a hundred characters."""
    return _SHORT.repr(value)


def _role(index: int, entry: Any, changes: dict[str, None]) -> str:
    key = f"key conversations[{index}]"
    if not isinstance(entry, dict):
        raise SampleError("broken turn", f"{key}: expected an object with from and value, not {shown(entry)}")
    speaker = entry.get(_keys(entry)[0])
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise SampleError("unknown role", f"{key}.{_keys(entry)[0]}: expected human or gpt, not {shown(speaker)}")
    if _keys(entry)[0] == "role":
        changes["role and content"] = None
    elif speaker in ("user", "assistant"):
        changes["user and assistant"] = None
    return _ROLES[speaker]


def _keys(entry: dict[str, Any]) -> tuple[str, str]:
    return ("role", "content") if "role" in entry and "from" not in entry else ("from", "value")


def _paired(roles: list[str], changes: dict[str, None]) -> tuple[int, int]:
    """First turn, and behind the last, without those that have no place in question and answer."""
    begin, end = 0, len(roles)
    for role, change in (("system", "system turn dropped"), ("assistant", "leading answer dropped")):
        if begin < end and roles[begin] == role:
            begin += 1
            changes[change] = None
    if begin < end and roles[end - 1] == "user":
        end -= 1
        changes["trailing question dropped"] = None
    return begin, end


def _turn(index: int, entry: dict[str, Any], role: str, place: int) -> Turn:
    speaker_key, text_key = _keys(entry)
    key, text = f"key conversations[{index}]", entry.get(text_key)
    if role != ("assistant" if place % 2 else "user"):
        expected = "gpt" if place % 2 else "human"
        raise SampleError(
            "turns out of order",
            f"{key}.{speaker_key}: expected {expected}, not {shown(entry[speaker_key])}: human first, gpt follows",
        )
    if not isinstance(text, str) or not text.strip():
        raise SampleError("empty text", f"{key}.{text_key}: expected a text that is not empty, not {shown(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SampleError("broken text", f"{key}.{text_key}: half of a surrogate pair in {shown(text)}") from None
    return Turn(role="assistant" if place % 2 else "user", text=text.strip())


def _image_first(turn: Turn) -> Turn:
    if turn.images == 1:
        rest = turn.text.replace(IMAGE_TOKEN, "").strip()
        return Turn(role="user", text=f"{IMAGE_TOKEN}\n{rest}".strip())
    return turn
