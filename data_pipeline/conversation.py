"""Conversations: checking LLaVA's form, and turning it into token ids with masks.

Shapes: N tokens of one sample; each image is ONE image-token id among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from data_pipeline.row import IGNORE_INDEX

IMAGE_TOKEN = "<image>"
"""Stands for an image in the text of LLaVA's data; also the name of the token that stands for it afterwards."""

TEMPLATES = ("llama3", "plain")
"""The forms that ``render`` writes."""

SYSTEM_MESSAGE = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
"""System message of the ``llama3`` form (LLaVA-NeXT's)."""

CHAT_TEMPLATE = (
    """\
{%- macro flat(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] == 'image' -%}
                {{- '<image>\\n' -}}
            {%- elif part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- else -%}
                {{- raise_exception('unknown part of a message: ' ~ part['type']) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro header(role) -%}
    {{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' -}}
{%- endmacro -%}
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = flat(messages[0]['content']) -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = '"""
    + SYSTEM_MESSAGE
    + """' -%}
    {%- set turns = messages -%}
{%- endif -%}
{{- header('system') ~ (system | trim) ~ '<|eot_id|>' -}}
{%- for turn in turns -%}
    {{- header(turn['role']) -}}
    {%- set text = flat(turn['content']) -%}
    {%- if turn['role'] == 'assistant' -%}
        {%- generation -%}
            {{- (text | trim) ~ '<|eot_id|>' -}}
        {%- endgeneration -%}
    {%- elif turn['role'] == 'user' -%}
        {%- if text.count('<image>') == 1 -%}
            {%- set text = '<image>\\n' ~ (text.replace('<image>', '') | trim) -%}
        {%- endif -%}
        {{- (text | trim) ~ '<|eot_id|>' -}}
    {%- else -%}
        {{- raise_exception('unknown role: ' ~ turn['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- header('assistant') -}}
{%- endif -%}
"""
)
"""The ``llama3`` form for ``tokenizer.apply_chat_template``: same ids as ``render``. Content is text, or parts."""

_ROLES: dict[Any, Literal["user", "assistant"]] = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Turn:
    """One turn. Images are ``<image>`` in the text of a user turn; in an answer it is text like any other."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids of a conversation, and what each token is for."""

    tokens: NDArray[np.int64]
    """int64 [N], one image-token id per image."""
    loss: NDArray[np.bool_]
    """bool [N], tokens that the model learns to produce: answers and the token that ends each."""
    instruction: NDArray[np.bool_]
    """bool [N], content of user turns after the last image; none without an image."""

    def labels(self) -> NDArray[np.int64]:
        """int64 [N], for each token the id to predict after it, ``IGNORE_INDEX`` where there is none."""
        labels = np.full_like(self.tokens, IGNORE_INDEX)
        labels[:-1][self.loss[1:]] = self.tokens[1:][self.loss[1:]]
        return labels


def parse_conversation(conversations: Any, num_images: int) -> list[Turn]:
    """Check LLaVA's ``conversations`` (a list of ``{"from": "human" | "gpt", "value": text}``) and take the turns.

    Where a user turn has one ``<image>``, it is moved to the front with a newline after it, as LLaVA does. Several in
    one turn stay where they are, because the text may refer to their places.

    Raises:
        ValueError: naming the key and the value that are wrong; the caller adds the file and the sample's id.
    """
    if not isinstance(conversations, list) or not conversations:
        raise ValueError(f"key conversations: expected a list of turns, not {_shown(conversations)}")
    turns: list[Turn] = []
    for index, entry in enumerate(conversations):
        key = f"conversations[{index}]"
        if not isinstance(entry, dict):
            raise ValueError(f"key {key}: expected an object with from and value, not {_shown(entry)}")
        speaker, text = entry.get("from"), entry.get("value")
        if not isinstance(speaker, str) or speaker not in _ROLES:
            raise ValueError(f"key {key}.from: expected human or gpt, not {_shown(speaker)}")
        expected = "gpt" if index % 2 else "human"
        if speaker != expected:
            raise ValueError(f"key {key}.from: expected {expected}, not {_shown(speaker)}: human first, gpt follows")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"key {key}.value: expected a text that is not empty, not {_shown(text)}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"key {key}.value: half of a surrogate pair in {_shown(text)}")
        turns.append(Turn(role=_ROLES[speaker], text=text.strip()))
    if turns[-1].role == "user":
        last = len(turns) - 1
        raise ValueError(f"key conversations[{last}]: the last question has no answer: {_shown(turns[last].text)}")
    placeholders = sum(turn.text.count(IMAGE_TOKEN) for turn in turns if turn.role == "user")
    if placeholders != num_images:
        raise ValueError(f"key conversations: {placeholders} {IMAGE_TOKEN} in the questions, but {num_images} images")
    return [_image_first(turn) for turn in turns]


def render(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerFast, template: str) -> EncodedConversation:
    """Write the turns in one of the ``TEMPLATES`` and mark its tokens.

    - ``llama3``: begin_of_text, the system message, then each turn as header, text, ``<|eot_id|>``. Loss on the answers
      and their ``<|eot_id|>``.
    - ``plain`` (captions, stage 1): beginning token, images, caption, end token; the question's text is left out.
      Loss on the caption and the end token; no instruction.

    Texts are encoded as plain text: one that contains ``<|eot_id|>`` or the like never becomes a special token.

    Raises:
        ValueError: the tokenizer lacks a token of the template, or the turns are not what ``plain`` is for.
    """
    if template == "llama3":
        writer = _render_llama3(turns, tokenizer)
    elif template == "plain":
        writer = _render_plain(turns, tokenizer)
    else:
        raise ValueError(f"unknown chat template {template!r}, expected one of {', '.join(TEMPLATES)}")
    tokens = np.array(writer.tokens, dtype=np.int64)
    images = np.flatnonzero(tokens == writer.image_id)
    instruction = np.array(writer.content, dtype=np.bool_)
    instruction[: images[-1] + 1 if len(images) else len(tokens)] = False
    return EncodedConversation(tokens=tokens, loss=np.array(writer.loss, dtype=np.bool_), instruction=instruction)


def instruction_markers(tokenizer: PreTrainedTokenizerFast, template: str) -> tuple[list[int], list[int]]:
    """Token ids that open and that close a user turn.

    What stands between them, after the last image, is the instruction (``EncodedConversation.instruction``): with the
    markers, a model finds it in token ids alone. Both are empty for ``plain``, which has none.
    """
    if template == "plain":
        return [], []
    writer = _Writer(tokenizer)
    writer.header("user")
    return writer.tokens, [special_id(tokenizer, "<|eot_id|>")]


def special_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Id of a token that the tokenizer must have by name.

    Raises:
        ValueError: it does not have it.
    """
    index = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(index, int) or tokenizer.convert_ids_to_tokens(index) != token:
        raise ValueError(f"tokenizer {tokenizer.name_or_path}: has no token {token!r}")
    return index


class _Writer:
    """Collects token ids with their marks."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.image_id = special_id(tokenizer, IMAGE_TOKEN)
        self.tokens: list[int] = []
        self.loss: list[bool] = []
        self.content: list[bool] = []

    def ids(self, ids: list[int], *, loss: bool = False, content: bool = False) -> None:
        self.tokens += ids
        self.loss += [loss] * len(ids)
        self.content += [content] * len(ids)

    def special(self, token: str, *, loss: bool = False) -> None:
        self.ids([special_id(self.tokenizer, token)], loss=loss)

    def text(self, text: str, *, loss: bool = False, content: bool = False) -> None:
        # split_special_tokens: what looks like a special token in a text is text.
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        self.ids(encoded["input_ids"], loss=loss, content=content)

    def question(self, text: str) -> None:
        for index, piece in enumerate(text.split(IMAGE_TOKEN)):
            if index > 0:
                self.ids([self.image_id], content=True)
            if piece:
                self.text(piece, content=True)

    def header(self, role: str) -> None:
        self.special("<|start_header_id|>")
        self.text(role)
        self.special("<|end_header_id|>")
        # On its own, as the texts begin with a visible character: the tokenizer splits there anyway.
        self.text("\n\n")


def _render_llama3(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerFast) -> _Writer:
    writer = _Writer(tokenizer)
    writer.special("<|begin_of_text|>")
    writer.header("system")
    writer.text(SYSTEM_MESSAGE)
    writer.special("<|eot_id|>")
    for turn in turns:
        writer.header(turn.role)
        if turn.role == "user":
            writer.question(turn.text)
        else:
            writer.text(turn.text, loss=True)
        writer.special("<|eot_id|>", loss=turn.role == "assistant")
    return writer


def _render_plain(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerFast) -> _Writer:
    num_images = turns[0].text.count(IMAGE_TOKEN)
    if len(turns) != 2 or num_images == 0:
        raise ValueError(
            f"key conversations: template plain is for images with one caption, not {len(turns)} turns with "
            f"{num_images} images in the first"
        )
    if not isinstance(tokenizer.eos_token, str):
        raise ValueError(f"tokenizer {tokenizer.name_or_path}: has no eos_token to end a caption with")
    writer = _Writer(tokenizer)
    if isinstance(tokenizer.bos_token, str):
        writer.special(tokenizer.bos_token)
    writer.ids([writer.image_id] * num_images)
    writer.text(turns[1].text, loss=True)
    writer.special(tokenizer.eos_token, loss=True)
    return writer


def _image_first(turn: Turn) -> Turn:
    if turn.role == "user" and turn.text.count(IMAGE_TOKEN) == 1:
        rest = turn.text.replace(IMAGE_TOKEN, "").strip()
        return Turn(role="user", text=f"{IMAGE_TOKEN}\n{rest}".strip())
    return turn


def _shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
