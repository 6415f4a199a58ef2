"""Which named form a published chat template is, where training cannot use the template itself.

Vision-language models are published with templates that take content in parts alone, leave beginning and system message
to the caller, and often end an answer with no special token. What identifies them is how they write a turn.
"""

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from data_pipeline.conversations.chat_templates import CHAT_TEMPLATES

PROCESSOR_TEMPLATE = "chat_template.json"
"""Where a processor of transformers 4 has its template; no tokenizer reads it."""


def processor_template(folder: Path) -> str | None:
    """The chat template that a folder's processor brings beside its tokenizer's; None where there is none.

    Raises:
        ValueError: the file cannot be read.
    """
    path = folder / PROCESSOR_TEMPLATE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["chat_template"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected an object with the key chat_template: {error}") from error


def named_form(tokenizer: PreTrainedTokenizerFast, template: str) -> str | None:
    """The named form that writes a later question, and what stands before its answer, as ``template`` does.

    Spaces and line feeds are not compared, nor is what stands before the first turn and behind an answer.
    """
    turn = _later_turn(tokenizer, template)
    forms = {name: _later_turn(tokenizer, form) for name, form in CHAT_TEMPLATES.items()}
    return next((name for name, form in forms.items() if turn is not None and form == turn), None)


def unlike_form(tokenizer: PreTrainedTokenizerFast, template: str, name: str) -> list[str]:
    """What a template writes otherwise than the form ``name``, which ``named_form`` recognised it as."""
    written, trained = _written(tokenizer, template), _written(tokenizer, CHAT_TEMPLATES[name])
    assert written is not None and trained is not None, "both were written to recognise the form"
    (begin, _, rest), (our_begin, _, our_rest) = (after.partition("One?") for _, after in (written, trained))
    bos = tokenizer.bos_token or ""
    unlike = []
    if _bare(begin.removeprefix(bos)) != _bare(our_begin.removeprefix(bos)):
        unlike.append("system message")
    if _bare(rest) != _bare(our_rest):
        unlike.append("end of an answer")
    elif rest != our_rest:
        unlike.append("spaces or line feeds")
    return unlike


def _bare(text: str) -> str:
    return "".join(text.split())


def _later_turn(tokenizer: PreTrainedTokenizerFast, template: str) -> str | None:
    """What a question with a picture adds to a conversation, up to its answer, without white space."""
    written = _written(tokenizer, template)
    if written is None or not written[1].startswith(written[0]) or "Two?" not in written[1]:
        return None
    return _bare(written[1].removeprefix(written[0]))


def _written(tokenizer: PreTrainedTokenizerFast, template: str) -> tuple[str, str] | None:
    """A question and its answer, and the same with a second question and the prompt; None if it cannot write them."""

    def said(role: str, text: str, *images: dict[str, str]) -> dict[str, Any]:
        return {"role": role, "content": [*images, {"type": "text", "text": text}]}

    image = {"type": "image"}
    messages = [said("user", "One?", image), said("assistant", "Yes."), said("user", "Two?", image)]

    def written(count: int, prompt: bool) -> str:
        text = tokenizer.apply_chat_template(
            messages[:count],  # type: ignore[arg-type]
            chat_template=template,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        assert isinstance(text, str)
        return text

    try:
        return written(2, False), written(3, True)
    except (TemplateError, TypeError):  # the second from one that takes content for a text
        return None
