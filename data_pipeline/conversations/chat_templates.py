"""The forms in which conversations are written, as Jinja templates for ``tokenizer.apply_chat_template``.

The renderer of the training data and the released model read the same templates. Each takes content as a text or as
parts ``[{"type": "image"}, {"type": "text", "text": ...}]`` and an optional system message in front.
"""

import json
from dataclasses import dataclass

IMAGE_TOKEN = "<image>"
"""Stands for an image in the text of LLaVA's data; also the name of the token that stands for it afterwards."""

_LLAVA = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)

PARTS = r"""
{%- macro flat(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] == 'image' -%}
                {{- '<image>\n' -}}
            {%- elif part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- else -%}
                {{- raise_exception('unknown part of a message: ' ~ part['type']) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro question(text) -%}
    {%- if text.count('<image>') == 1 -%}
        {{- ('<image>\n' ~ (text.replace('<image>', '') | trim)) | trim -}}
    {%- else -%}
        {{- text | trim -}}
    {%- endif -%}
{%- endmacro -%}
"""
"""Macros for content: ``flat`` writes parts as a text, ``question`` puts the text of a user turn as training does."""

_BODY = r"""
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system, turns = flat(messages[0]['content']) | trim, messages[1:] -%}
{%- else -%}
    {%- set system, turns = SYSTEM_MESSAGE, messages -%}
{%- endif -%}
{{- OPENING -}}
{%- for turn in turns -%}
    {%- if turn['role'] == 'user' -%}
        {%- set text = question(flat(turn['content'])) -%}
        {{- USER -}}
    {%- elif turn['role'] == 'assistant' -%}
        {%- set text = flat(turn['content']) | trim -%}
        {{- PROMPT -}}
        {%- generation -%}
            {{- ANSWER -}}
        {%- endgeneration -%}
        {{- BETWEEN -}}
    {%- else -%}
        {{- raise_exception('unknown role: ' ~ turn['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- PROMPT -}}
{%- endif -%}
"""


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What differs between the forms: Jinja expressions over ``system`` and, in a turn, ``text`` and ``loop``."""

    system_message: str = ""
    """Where the conversation brings none."""
    opening: str
    """What stands before the first turn."""
    user: str
    prompt: str = "''"
    """What stands before an answer and ends a prompt for generation."""
    answer: str
    """What the model has to produce: the text, and the token that ends it."""
    between: str = "''"
    """What stands between an answer and the next turn."""

    def jinja(self) -> str:
        """The whole template."""
        body = _BODY.replace("SYSTEM_MESSAGE", json.dumps(self.system_message))
        for name in ("opening", "user", "prompt", "answer", "between"):
            body = body.replace(f"{{{{- {name.upper()} -}}}}", f"{{{{- {getattr(self, name)} -}}}}")
        return (PARTS + body).strip() + "\n"


# Texts, separators and system messages are those of LLaVA-NeXT's llava/conversation.py (llava_llama_3, vicuna_v1,
# llava_llama_2, qwen_1_5, mistral_instruct), except that a Mistral answer is followed by its end token at once, as in
# Mistral's own form, and that a caption ends with the end token instead of a line feed.
_FORMS = {
    "llama3": _Form(
        system_message=_LLAVA,
        opening=r"bos_token ~ '<|start_header_id|>system<|end_header_id|>\n\n' ~ system ~ '<|eot_id|>'",
        user=r"'<|start_header_id|>user<|end_header_id|>\n\n' ~ text ~ '<|eot_id|>'",
        prompt=r"'<|start_header_id|>assistant<|end_header_id|>\n\n'",
        answer="text ~ '<|eot_id|>'",
    ),
    "vicuna": _Form(
        system_message=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
        opening="bos_token ~ (system ~ ' ' if system else '')",
        user="'USER: ' ~ text ~ ' '",
        prompt="'ASSISTANT:'",
        answer="' ' ~ text ~ eos_token",
    ),
    "llama2": _Form(
        system_message=_LLAVA,
        opening="''",
        user=(
            r"bos_token ~ '[INST] ' ~ ('<<SYS>>\n' ~ system ~ '\n<</SYS>>\n\n' if loop.first and system else '')"
            " ~ text ~ ' [/INST]'"
        ),
        answer="' ' ~ text ~ ' ' ~ eos_token",
    ),
    "chatml": _Form(
        system_message="You are a helpful assistant.",
        opening=r"'<|im_start|>system\n' ~ system ~ '<|im_end|>\n'",
        user=r"'<|im_start|>user\n' ~ text ~ '<|im_end|>\n'",
        prompt=r"'<|im_start|>assistant\n'",
        answer="text ~ '<|im_end|>'",
        between=r"'\n'",
    ),
    "mistral": _Form(
        opening="bos_token",
        user=r"'[INST] ' ~ (system ~ '\n\n' if loop.first and system else '') ~ text ~ ' [/INST]'",
        answer="' ' ~ text ~ eos_token",
    ),
    # Images and a caption, for alignment; a question beside the images is left out.
    "plain": _Form(
        opening="bos_token",
        user="'<image>' * text.count('<image>')",
        answer="text ~ eos_token",
    ),
}

CHAT_TEMPLATES = {name: form.jinja() for name, form in _FORMS.items()}
"""Jinja template of each named form."""

SYSTEM_MESSAGES = {name: form.system_message for name, form in _FORMS.items()}
"""The system message of each named form where a conversation brings none."""

TEMPLATE_NAMES = (*CHAT_TEMPLATES, "tokenizer")
"""Forms to choose from; ``tokenizer`` is the tokenizer's own chat template."""
