"""A release whose template is the tokenizer's own, asked in parts, writes what training wrote."""

import functools

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from data_pipeline.conversations.conversation import Turn, parse_conversation
from data_pipeline.conversations.own_template import own_template, taking_parts
from data_pipeline.conversations.rendering import Renderer
from tests.unit.data_pipeline.conversations.own_templates import OWN_TEMPLATES
from tests.unit.data_pipeline.family_tokenizers import KINDS, family_tokenizer

IMAGE = {"type": "image"}


def said(text):
    return {"type": "text", "text": text}


CONVERSATIONS = {  # questions as parts, and as LLaVA's data has them
    "one image": [([IMAGE, said("What is this?")], "<image>\nWhat is this?")],
    "image behind the text": [([said("What is this?\n"), IMAGE], "What is this?\n<image>")],
    "image alone": [([IMAGE], "<image>")],
    "several images": [([IMAGE, IMAGE, said("Compare. ")], "<image>\n<image>\nCompare.")],
    "text alone": [([said("  2 + 2?\n\nBe brief. ")], "2 + 2?\n\nBe brief.")],
    "turns": [([IMAGE, said("One?")], "<image>\nOne?"), ([said("日本?")], "日本?"), ([IMAGE, said("a")], "<image>\na")],
}


@functools.cache
def tokenizer(kind, template):
    base = family_tokenizer(kind)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(base.backend_tokenizer.to_str()),
        bos_token=base.bos_token,
        eos_token=base.eos_token,
        pad_token=base.pad_token,
        extra_special_tokens={"image_token": "<image>"},
        chat_template=OWN_TEMPLATES[template],
    )


@functools.cache
def renderer(kind, template):
    return Renderer(tokenizer(kind, template), "tokenizer")


def written(kind, template, messages, **options):
    """What a release does."""
    template = renderer(kind, template).release_template
    return family_tokenizer(kind).apply_chat_template(messages, chat_template=template, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", OWN_TEMPLATES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_parts_give_the_ids_of_training(name, template, kind):
    messages, values = [], []
    for content, text in CONVERSATIONS[name]:
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": [said(" Yes. ")]}]
        values += [{"from": "human", "value": text}, {"from": "gpt", "value": "Yes."}]
    turns = parse_conversation(values, sum(value["value"].count("<image>") for value in values)).turns
    expected = renderer(kind, template).render(turns).tokens.tolist()
    assert written(kind, template, messages)["input_ids"] == expected
    as_texts = [{"role": turn.role, "content": turn.text} for turn in turns]
    assert written(kind, template, as_texts)["input_ids"] == expected
    prompts = [written(kind, template, m[:-1], add_generation_prompt=True) for m in (messages, as_texts)]
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize("template", OWN_TEMPLATES)
def test_a_system_message(template):
    def conversation(system, question):
        return [{"role": "system", "content": system}, {"role": "user", "content": question}]

    form = {"tokenize": False, "add_generation_prompt": True}
    parts = written(KINDS[0], template, conversation([said("Be brief.")], [IMAGE, said("What?")]), **form)
    texts = conversation("Be brief.", "<image>\nWhat?")
    assert parts == tokenizer(KINDS[0], template).apply_chat_template(texts, **form)
    assert "Be brief." in parts


def test_texts_stay_as_they_are():
    for content in (" a <image> \n", ""):
        messages = [{"role": "user", "content": content}, {"role": "tool"}, {"role": "tool", "content": None}]
        shown = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
        own, release = (
            family_tokenizer(KINDS[0]).apply_chat_template(messages, chat_template=template, tokenize=False)
            for template in (shown, taking_parts(shown))
        )
        assert own == release and release.startswith(f"[{content}]")


def test_unknown_parts_are_refused():
    with pytest.raises(TemplateError, match="unknown part of a message: video"):
        written(KINDS[0], "qwen", [{"role": "user", "content": [{"type": "video"}]}])


def test_a_releases_template_is_the_one_of_training():
    release = tokenizer(KINDS[0], "llama3")
    before = renderer(KINDS[0], "llama3")
    release = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(release.backend_tokenizer.to_str()),
        bos_token=release.bos_token,
        eos_token=release.eos_token,
        pad_token=release.pad_token,
        chat_template=before.release_template,
    )
    assert own_template(release) == before.chat_template == OWN_TEMPLATES["llama3"]
    after = Renderer(release, "tokenizer")
    assert (after.hash, after.release_template) == (before.hash, before.release_template)


def test_named_forms_take_parts_themselves():
    form = Renderer(family_tokenizer(KINDS[0]), "chatml")
    assert form.release_template == form.chat_template
    assert form.render([Turn("user", "a"), Turn("assistant", "b")]).tokens.size
