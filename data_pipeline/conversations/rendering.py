"""Conversations as token ids, with what is learnt and what may ask about the images.

Shapes: N tokens of one sample; each image is ONE image-token id among them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from data_pipeline.conversations.chat_templates import CHAT_TEMPLATES, IMAGE_TOKEN, TEMPLATE_NAMES
from data_pipeline.conversations.conversation import Turn
from data_pipeline.conversations.guarded_tokenizer import GuardedTokenizer
from data_pipeline.conversations.own_template import own_template, taking_parts
from data_pipeline.conversations.skeleton import Piece, Skeleton, SkeletonMaker
from data_pipeline.conversations.tokenizer import special_id, tokenizer_hash
from data_pipeline.conversations.turn_markers import find_markers
from data_pipeline.errors import SampleError
from data_pipeline.row import IGNORE_INDEX

_PROBE = (
    Turn("user", f"{IMAGE_TOKEN}\nIs \"it\" <b>red</b> &\n\n\tblue {{{{ or }}}} 'green'?"),
    Turn("assistant", "Yes:  'é' 日本\n- 1,234 🙂"),
    Turn("user", "7 + 1 < 9?"),
    Turn("assistant", "\u201cNo\u201d  \\n"),
)
"""A conversation with what a template may treat in a way of its own."""


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids of a conversation, and what each token is for."""

    tokens: NDArray[np.int64]
    """int64 [N], one image-token id per image."""
    loss: NDArray[np.bool_]
    """bool [N], tokens that the model learns to produce: answers and the token that ends each."""
    user_turn: NDArray[np.int64]
    """int64 [N], for the content of user turns after the last image the number of answers before the turn; -1
    elsewhere, and everywhere without an image."""

    def labels(self) -> NDArray[np.int64]:
        """int64 [N], for each token the id to predict after it, ``IGNORE_INDEX`` where there is none."""
        labels = np.full_like(self.tokens, IGNORE_INDEX)
        labels[:-1][self.loss[1:]] = self.tokens[1:][self.loss[1:]]
        return labels


class Renderer:
    """Writes conversations in one form. The ids are those of ``tokenizer.apply_chat_template`` with that template.

    What looks like a special token in a text of the data is text. Only the template's own special tokens, and the
    ``<image>`` of user turns that are not ``text_only``, become special.

    Args:
        tokenizer: with an image token and a pad token; see ``load_tokenizer``.
        template: one of ``TEMPLATE_NAMES``.

    Raises:
        ValueError: the name is unknown, or the template cannot be used with this tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str):
        if template not in TEMPLATE_NAMES:
            raise ValueError(f"unknown chat template {template!r}, expected one of {', '.join(TEMPLATE_NAMES)}")
        self.template = template
        own = template == "tokenizer"
        self.chat_template = own_template(tokenizer) if own else CHAT_TEMPLATES[template]
        """The Jinja template, for content that is a text."""
        self.release_template = taking_parts(self.chat_template) if own else self.chat_template
        """The same for content in parts as well."""
        self._image_id = special_id(tokenizer, IMAGE_TOKEN)
        self._guarded = GuardedTokenizer(tokenizer)
        self._image = self._guarded.guard(IMAGE_TOKEN)
        where = f"tokenizer {tokenizer.name_or_path}, chat template {template}"
        self._maker = SkeletonMaker(tokenizer, self.chat_template, self._guarded, where)
        self._skeletons: dict[tuple[Piece, ...], Skeleton] = {}
        self._check(tokenizer, where)
        text = json.dumps([tokenizer_hash(tokenizer), self.chat_template, tokenizer.bos_token, tokenizer.eos_token])
        self.hash = hashlib.sha256(text.encode()).hexdigest()
        """SHA-256 of all that decides the ids."""

    @property
    def end_ids(self) -> list[int]:
        """Ids of the tokens that end an answer."""
        ends = self._skeleton(self._pieces(_PROBE[:2])).answer_ends
        return sorted({int(self._guarded.encode(end)[0][-1]) for end in ends})

    def render(self, turns: Sequence[Turn]) -> EncodedConversation:
        """Token ids and masks of a conversation that ``parse_conversation`` has checked.

        - Loss: what the model has to produce after the template's generation prompt, which is the answer and what
          follows it up to the first special token. A token on the border belongs to the answer.
        - User turns: their texts after the last image.

        Raises:
            SampleError: ``plain`` is for images with one caption.
        """
        if self.template == "plain":
            _check_caption(turns)
        pieces = self._pieces(turns)
        skeleton = self._skeleton(pieces)
        text, loss, users = skeleton.fill([self._guarded_text(turn) for turn in turns])
        tokens, starts, ends = self._guarded.encode(text)

        def numbered(spans: list[tuple[int, int]]) -> NDArray[np.int64]:
            number = np.full(len(tokens), -1, dtype=np.int64)
            for i, (begin, end) in enumerate(spans):
                if begin < end:
                    number[np.searchsorted(ends, begin, "right") : np.searchsorted(starts, end, "left")] = i
            return number

        user_turn = numbered(users)
        images = np.flatnonzero(tokens == self._image_id)
        user_turn[: images[-1] + 1 if len(images) else len(tokens)] = -1
        return EncodedConversation(tokens=tokens, loss=numbered(loss) >= 0, user_turn=user_turn)

    def instruction_markers(self) -> tuple[list[list[int]], list[list[int]]]:
        """Ids by which a model finds the instruction in token ids alone: what opens and what closes a user turn.

        Each is a list of alternatives, as the same text gives other ids in another context (first or later turn,
        before a word or an image). The longest alternative that fits is the marker; none of its tokens belong to the
        instruction. Both lists are empty where the template writes no user texts.
        """
        if self.template == "plain":
            return [], []
        return find_markers(self._guarded, self._image, lambda turns: self._skeleton(self._pieces(turns)))

    def _pieces(self, turns: Sequence[Turn]) -> tuple[Piece, ...]:
        """What decides the skeleton."""
        if self.template == "plain":  # which writes no text of a user turn, only its images
            images = turns[0].images
            return (("user", IMAGE_TOKEN * images), ("assistant", None))
        return tuple((turn.role, None) for turn in turns)

    def _skeleton(self, pieces: tuple[Piece, ...]) -> Skeleton:
        if pieces not in self._skeletons:
            self._skeletons[pieces] = self._maker.make(pieces)
        return self._skeletons[pieces]

    def _guarded_text(self, turn: Turn) -> str:
        return turn.text.replace(IMAGE_TOKEN, self._image) if turn.images else turn.text

    def _check(self, tokenizer: PreTrainedTokenizerFast, where: str) -> None:
        """Refuse a template for which filling in texts is not what applying it does."""
        probe = _PROBE[:2] if self.template == "plain" else _PROBE
        direct = self._maker.apply([(turn.role, turn.text) for turn in probe])
        ids = tokenizer(direct, add_special_tokens=False)["input_ids"]
        if self.render(probe).tokens.tolist() != ids:
            raise ValueError(f"{where}: changes the texts of a conversation; choose a named template")
        if self.template != "tokenizer":  # whose author has decided
            loose = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.special]
            if forgeable := [token for token in loose if token in direct]:
                raise ValueError(f"{where}: {forgeable} are not special tokens, so any text could contain them")
        if tokenizer.pad_token_id in ids:
            raise ValueError(f"{where}: pad_token {tokenizer.pad_token!r} also stands in conversations")
        try:
            self.instruction_markers()  # refused here rather than when the trained model is exported
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _check_caption(turns: Sequence[Turn]) -> None:
    images = turns[0].images
    if len(turns) != 2 or images == 0:
        raise SampleError(
            "not a caption",
            f"key conversations: template plain is for images with one caption, not {len(turns)} turns with "
            f"{images} images in the first",
        )
