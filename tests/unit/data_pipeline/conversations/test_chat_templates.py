"""The templates' texts, written out from LLaVA-NeXT's llava/conversation.py and the model families' documentation."""

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from data_pipeline.conversations.chat_templates import CHAT_TEMPLATES, SYSTEM_MESSAGES, TEMPLATE_NAMES

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAVA = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
TWO_TURNS = {
    "llama3": (
        f"<s><|start_header_id|>system<|end_header_id|>\n\n{LLAVA}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nQ1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA2<|eot_id|>"
    ),
    "vicuna": f"<s>{VICUNA} USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>",
    "llama2": (f"<s>[INST] <<SYS>>\n{LLAVA}\n<</SYS>>\n\n<image>\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST] A2 </s>"),
    "chatml": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n"
    ),
    "mistral": "<s>[INST] <image>\nQ1 [/INST] A1</s>[INST] Q2 [/INST] A2</s>",
    "plain": "<s><image>A1</s>A2</s>",
}
PROMPTS = {
    "llama3": "\n\n<image>\nQ1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "vicuna": " USER: <image>\nQ1 ASSISTANT:",
    "llama2": "\n\n<image>\nQ1 [/INST]",
    "chatml": "<|im_start|>user\n<image>\nQ1<|im_end|>\n<|im_start|>assistant\n",
    "mistral": "<s>[INST] <image>\nQ1 [/INST]",
    "plain": "<s><image>",
}
WITH_SYSTEM = {
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user",
    "vicuna": "<s>Be brief. USER: ",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user",
    "mistral": "<s>[INST] Be brief.\n\n",
}


def apply(name, *messages, **options):
    rendered, _ = render_jinja_template(
        [list(messages)], chat_template=CHAT_TEMPLATES[name], bos_token="<s>", eos_token="</s>", **options
    )
    return rendered[0]


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def test_names():
    assert TEMPLATE_NAMES == ("llama3", "vicuna", "llama2", "chatml", "mistral", "plain", "tokenizer")
    assert SYSTEM_MESSAGES["llama3"] == LLAVA and SYSTEM_MESSAGES["mistral"] == ""


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_two_turns(name):
    turns = (assistant("A1 "), user("\nQ2"), assistant(" A2"))
    assert apply(name, user("Q1\n<image>"), *turns) == TWO_TURNS[name]
    parts = [{"type": "text", "text": "Q1"}, {"type": "image"}]
    assert apply(name, user(parts), *turns) == TWO_TURNS[name]


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_generation_prompt(name):
    parts = [{"type": "image"}, {"type": "text", "text": "Q1"}]
    prompt = apply(name, user(parts), add_generation_prompt=True)
    assert prompt.endswith(PROMPTS[name])
    assert TWO_TURNS[name].startswith(prompt)


@pytest.mark.parametrize("name", WITH_SYSTEM)
def test_system_message(name):
    system = {"role": "system", "content": "Be brief. "}
    assert apply(name, system, user("Q1")).startswith(WITH_SYSTEM[name])


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_what_is_unknown_is_refused(name):
    with pytest.raises(TemplateError, match="unknown role: tool"):
        apply(name, {"role": "tool", "content": "x"})
    with pytest.raises(TemplateError, match="unknown part of a message: video"):
        apply(name, user([{"type": "video"}]))


def test_several_images():
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare."}]
    assert apply("mistral", user(parts)) == "<s>[INST] <image>\n<image>\nCompare. [/INST]"
    assert apply("mistral", user("First <image> then <image>.")) == "<s>[INST] First <image> then <image>. [/INST]"
    assert apply("plain", user(parts)) == "<s><image><image>"


def test_tokenizer_without_a_beginning_token():
    rendered, _ = render_jinja_template([[user("Q")]], chat_template=CHAT_TEMPLATES["vicuna"], eos_token="</s>")
    assert rendered[0] == f"{VICUNA} USER: Q "
