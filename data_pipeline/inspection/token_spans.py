"""A conversation's tokens as text, each with what it is for."""

from dataclasses import dataclass
from enum import StrEnum

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from data_pipeline.conversations.chat_templates import IMAGE_TOKEN
from data_pipeline.conversations.rendering import EncodedConversation, Renderer
from data_pipeline.conversations.tokenizer import special_id
from data_pipeline.dataset.manifest import Manifest


class Role(StrEnum):
    """What a token is for."""

    LEARNT = "learnt"
    """The model learns to produce it."""
    INSTRUCTION = "instruction"
    """It guides the text-guided sampler: a question after the last image."""
    SPECIAL = "special"
    """A special token of the chat template that is not learnt."""
    IMAGE = "image"
    """It stands for an image."""
    OTHER = "other"
    """Any other: the template's words, questions before the last image, and all questions where there is no image."""


@dataclass(frozen=True)
class TokenSpan:
    """A token, or several that stand for one character together."""

    text: str
    ids: tuple[int, ...]
    role: Role
    special: bool
    """Whether it is a special token, learnt or not."""


def token_spans(encoded: EncodedConversation, tokenizer: PreTrainedTokenizerFast) -> list[TokenSpan]:
    """The tokens in order; their texts make up what the tokenizer decodes from all ids."""
    image = special_id(tokenizer, IMAGE_TOKEN)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}

    def role(index: int, learnt: bool, may_ask: bool) -> Role:
        if index == image:
            return Role.IMAGE
        if learnt:
            return Role.LEARNT
        if may_ask:
            return Role.INSTRUCTION
        return Role.SPECIAL if index in special else Role.OTHER

    stream = DecodeStream(skip_special_tokens=False)
    spans: list[TokenSpan] = []
    pending: list[int] = []
    for place, index in enumerate(encoded.tokens.tolist()):
        pending.append(index)
        text = stream.step(tokenizer.backend_tokenizer, index)
        if text is None and place == len(encoded.tokens) - 1:
            text = "\ufffd"  # which is also what it waits behind, for the rest of a character
        if text is not None:
            kind = role(index, bool(encoded.loss[place]), bool(encoded.user_turn[place] >= 0))
            spans.append(TokenSpan(text, tuple(pending), kind, index in special))
            pending.clear()
    return spans


def check_rendering(manifest: Manifest, renderer: Renderer, tokenizer_folder: str) -> None:
    """Refuse a tokenizer whose ids are not those that the data set was prepared with.

    Raises:
        ValueError: naming both and their hashes.
    """
    expected = manifest.info["rendering_sha256"]
    if renderer.hash != expected:
        raise ValueError(
            f"tokenizer {tokenizer_folder} is not the one that {manifest.folder} was prepared with "
            f"(chat template {renderer.template}; rendering_sha256 is {renderer.hash}, in dataset.json {expected})"
        )
