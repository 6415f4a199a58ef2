"""Published templates that training cannot use are recognised by what they write."""

import pytest

from data_pipeline.conversations.chat_templates import CHAT_TEMPLATES
from data_pipeline.conversations.form_recognition import named_form, processor_template, unlike_form
from data_pipeline.conversations.rendering import Renderer
from tests.unit.data_pipeline.conversations.llava_hf_templates import CHATML, LLAVA_HF_TEMPLATES, VICUNA
from tests.unit.data_pipeline.family_tokenizers import KINDS, family_tokenizer


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("name", LLAVA_HF_TEMPLATES)
def test_published_templates(name, kind):
    tokenizer, template = family_tokenizer(kind), LLAVA_HF_TEMPLATES[name]
    assert named_form(tokenizer, template) == name
    # What the model is asked with is what training writes, but for beginning and system message.
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    form = {"tokenize": False, "add_generation_prompt": True}
    asked, trained = (
        tokenizer.apply_chat_template([{"role": "user", "content": parts}], chat_template=t, **form)
        for t in (template, Renderer(tokenizer, name).release_template)
    )
    if name == "chatml":  # but for the line feed between turns
        trained = trained.replace("<|im_end|>\n", "<|im_end|>")
    assert trained.endswith(asked) and "<image>\nWhat is it?" in asked


def test_white_space_does_not_matter():
    assert named_form(family_tokenizer(KINDS[0]), CHATML.replace("'<|im_end|>'", r"'<|im_end|>' + '\n'")) == "chatml"


@pytest.mark.parametrize(
    ("start", "end", "unlike"),
    [
        ("You are a helpful assistant.", r"\n", []),
        ("Be short.", r"\n", ["system message"]),
        ("You are a helpful assistant.", "", ["spaces or line feeds"]),
    ],
)
def test_what_a_recognised_template_writes_otherwise(start, end, unlike):
    template = (
        f"{{{{ '<|im_start|>system\\n{start}<|im_end|>\\n' }}}}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% for p in m.content %}{{ '<image>\\n' if p.type == 'image' else p.text }}{% endfor %}"
        f"{{{{ '<|im_end|>{end}' }}}}{{% endfor %}}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    tokenizer = family_tokenizer(KINDS[0])
    assert named_form(tokenizer, template) == "chatml"
    assert unlike_form(tokenizer, template, "chatml") == unlike
    assert unlike_form(tokenizer, VICUNA, "vicuna") == ["system message", "end of an answer"]


def test_named_forms_are_themselves():
    for name, template in CHAT_TEMPLATES.items():
        assert named_form(family_tokenizer(KINDS[0]), template) == (None if name == "plain" else name)


@pytest.mark.parametrize(
    "template",
    [
        VICUNA.replace("upper", "lower"),
        VICUNA.replace("'<image>\n'", "'<picture>\n'"),
        "{% for message in messages %}{{ message['content'] + '!' }}{% endfor %}",
        "{% for message in messages %}{{ message['content'].text.upper() }}{% endfor %}",
        "{{ messages | length }}",
    ],
)
def test_other_templates_are_none_of_them(template):
    assert named_form(family_tokenizer(KINDS[0]), template) is None


def test_a_processors_template(tmp_path):
    assert processor_template(tmp_path) is None
    path = tmp_path / "chat_template.json"
    path.write_text('{"chat_template": "x"}')
    assert processor_template(tmp_path) == "x"
    for content in ("{", "[]", "{}"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"chat_template\.json: expected an object with the key chat_template"):
            processor_template(tmp_path)
