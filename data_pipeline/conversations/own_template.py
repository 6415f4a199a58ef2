"""A tokenizer's own chat template: as training uses it, and as a release carries it.

Training writes content as text, which every chat template takes. A release is also asked in parts
(``[{"type": "image"}, {"type": "text", "text": ...}]``), which the templates of language models do not know.
"""

from transformers import PreTrainedTokenizerFast

from data_pipeline.conversations.chat_templates import PARTS

_TO_TEXT = (
    "{%- set in_text = namespace(messages=[]) -%}\n"
    # Inside ``with`` the macros' names cannot meet the template's; ``messages`` itself is set anew below it.
    "{%- with given = messages -%}\n"
    + PARTS.strip()
    + r"""
{%- for message in given -%}
    {%- set content = message['content'] -%}
    {%- if content is defined and content is sequence and content is not string -%}
        {%- set text = question(flat(content)) if message['role'] == 'user' else flat(content) | trim -%}
        {%- set in_text.messages = in_text.messages + [dict(message, content=text)] -%}
    {%- else -%}
        {%- set in_text.messages = in_text.messages + [message] -%}
    {%- endif -%}
{%- endfor -%}
{%- endwith -%}
{%- set messages = in_text.messages %}
"""
)
"""Jinja that writes content in parts as training writes it, and leaves other content alone.

It ends with a line break of its own, so that the template behind it begins a line, as it did.
"""


def own_template(tokenizer: PreTrainedTokenizerFast) -> str:
    """The tokenizer's own template, also where the tokenizer is a release's.

    Raises:
        ValueError: it has none, or one that writes another text every day.
    """
    where = f"tokenizer {tokenizer.name_or_path}"
    if not isinstance(tokenizer.chat_template, str):
        raise ValueError(f"{where}: has no chat template of its own; choose a named template")
    if "strftime_now" in tokenizer.chat_template:
        raise ValueError(f"{where}: its chat template writes today's date; choose a named template")
    return tokenizer.chat_template.removeprefix(_TO_TEXT)


def taking_parts(template: str) -> str:
    """The template for a release: given parts, it writes what training wrote for the same conversation."""
    return _TO_TEXT + template
