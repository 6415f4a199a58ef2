"""The text that a chat template puts around the texts of a conversation, found by rendering it once with marks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from data_pipeline.conversations.guarded_tokenizer import GuardedTokenizer

Piece = tuple[str, str | None]
"""Role of a turn, and its text where that is part of the skeleton; None for a text to be filled in."""

Span = tuple[int, int]
"""Characters: first, and behind the last."""


@dataclass(frozen=True)
class Skeleton:
    """The template's text of a conversation, with its special tokens guarded and gaps for the texts."""

    roles: tuple[str | None, ...]
    """Of each turn; None for a turn without a gap."""
    between: tuple[str, ...]
    """What stands before, between and behind the gaps: one more than there are gaps."""
    leads: tuple[int, ...]
    """For each gap, characters before it that the model has to produce too."""
    tails: tuple[int, ...]
    """For each gap, characters behind it that the model has to produce too; 0 for questions."""

    @property
    def answer_ends(self) -> list[str]:
        """What stands behind each answer, up to the special token that ends it."""
        return [text[:tail] for text, tail in zip(self.between[1:], self.tails, strict=True) if tail]

    def fill(self, texts: Sequence[str]) -> tuple[str, list[Span], list[Span]]:
        """The whole text, and the spans in it that the model has to produce and that users wrote."""
        parts, length = [self.between[0]], len(self.between[0])
        answers: list[Span] = []
        questions: list[Span] = []
        gap = 0
        for role, text in zip(self.roles, texts, strict=True):
            if role is None:
                continue
            end = length + len(text)
            if role == "user":
                questions.append((length, end))
            else:
                answers.append((length - self.leads[gap], end + self.tails[gap]))
            gap += 1
            parts += [text, self.between[gap]]
            length = end + len(self.between[gap])
        return "".join(parts), answers, questions


class SkeletonMaker:
    """Renders a chat template with marks for texts.

    Args:
        tokenizer: renders the template and gives its special tokens.
        chat_template: Jinja.
        guarded: encodes what comes out.
        where: names tokenizer and template in messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, chat_template: str, guarded: GuardedTokenizer, where: str):
        self._tokenizer, self._chat_template, self._guarded, self._where = tokenizer, chat_template, guarded, where
        question = [("user", _mark(0))]
        prompt = self.apply(question, add_generation_prompt=True)
        before_answer = self.apply([*question, ("assistant", _mark(1))]).split(_mark(1))[0]
        # Behind the prompt for generation, the model must produce everything itself, the answer's first space too.
        self._lead = guarded.guard(before_answer.removeprefix(prompt)) if before_answer.startswith(prompt) else ""

    def make(self, pieces: Sequence[Piece]) -> Skeleton:
        """The skeleton of turns with these roles.

        Raises:
            ValueError: the template does not write each text once and in order, or does not end an answer with a
                special token.
        """
        texts = [(role, _mark(number) if text is None else text) for number, (role, text) in enumerate(pieces)]
        rest, between, leads, tails = self.apply(texts), [], [], []
        gaps = [number for number, (_, text) in enumerate(pieces) if text is None]
        for number in gaps:
            before, mark, rest = rest.partition(_mark(number))
            if not mark:
                raise ValueError(f"{self._where}: does not write every text once and in order; choose another template")
            between.append(before)
        between = [self._guarded.guard(text) for text in [*between, rest]]
        if any(_ANY_MARK.search(text) for text in between):
            raise ValueError(f"{self._where}: writes a text more than once; choose another template")
        for gap, number in enumerate(gaps):
            is_answer = pieces[number][0] == "assistant"
            leads.append(len(self._lead) if is_answer and between[gap].endswith(self._lead) else 0)
            tails.append(self._end(between[gap + 1]) if is_answer else 0)
        roles = tuple(role if text is None else None for role, text in pieces)
        return Skeleton(roles, tuple(between), tuple(leads), tuple(tails))

    def apply(self, turns: Sequence[tuple[str, str]], add_generation_prompt: bool = False) -> str:
        """The template applied to roles and texts.

        Raises:
            ValueError: the template refuses.
        """
        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages,  # type: ignore[arg-type]
                chat_template=self._chat_template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except (TemplateError, TypeError) as error:  # the second from one that takes content for a list of parts
            raise ValueError(
                f"{self._where}: cannot be applied to a conversation: {error}; choose another template"
            ) from error
        assert isinstance(rendered, str)
        return rendered

    def _end(self, behind: str) -> int:
        """Characters behind an answer up to the special token that ends it."""
        end = self._guarded.any_guard.search(behind)
        if end is None:
            raise ValueError(
                f"{self._where}: an answer does not end with a special token of the tokenizer but with {behind!r}, so "
                "a model would not learn to stop; choose another template or add the special token to the tokenizer"
            )
        return end.end()


def _mark(number: int) -> str:
    return f"\ue000{number}\ue001"


_ANY_MARK = re.compile("\ue000[0-9]+\ue001")
