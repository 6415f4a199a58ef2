import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_models.datatypes import RawMessage, StopReason
from llama_models.llama3 import tokenizer as llama3_tokenizer
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from data_pipeline.conversations.chat_templates import CHAT_TEMPLATES, SYSTEM_MESSAGES
from data_pipeline.conversations.conversation import Turn, parse_conversation
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import LLAMA3_PATTERN, LLAMA3_SPECIAL_TOKENS, add_image_and_pad
from data_pipeline.errors import SampleError
from data_pipeline.row import IGNORE_INDEX
from tests.unit.data_pipeline.family_tokenizers import KINDS, family_tokenizer

CHAT = [name for name in CHAT_TEMPLATES if name != "plain"]


@functools.cache
def renderer(kind, template):
    return Renderer(family_tokenizer(kind), template)


def llava(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def conversation(*texts, images=1):
    return parse_conversation(llava(*texts), images, text_only=not images).turns


def apply(tokenizer, template, texts, **options):
    """What the release does: transformers' own way from messages to ids."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATES[template], tokenize=True, return_dict=True, **options
    )


def runs(tokenizer, tokens, mask):
    """The texts of the marked runs of tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [tokenizer.decode(tokens[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


CONVERSATIONS = {
    "one image": (1, ["<image>\nWhat is this?", "A cat."]),
    "image at the end": (1, ["What is this?\n<image>", " A cat.\n"]),
    "two turns": (1, ["<image>\nWhat is this?", "A cat.", "  Which colour?\n\nBe brief.", "Red"]),
    "image in the second turn": (1, ["Hello there", "Hi.", "<image>\nAnd this?", "A dog.", "Sure?", "Yes."]),
    "two images in a turn": (2, ["First <image> then <image>, compare.", "They differ.", "7?", "日本"]),
    "image alone": (1, ["<image>", "A cat.", "(a)", "'s"]),
    "images of two turns": (2, ["<image>\nOne?", "A.", "<image>", "B.", "🙂", "C."]),
    "text alone": (0, ["What is 2 + 2?", "4"]),
    "unusual text": (0, ["日本語 🙂\tcafé\r\n  x = 1;\n\n\n  y", "  \u00a0Ünïcode 12345 's  \n end"]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", CHAT)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_and_loss_equal_apply_chat_template(name, template, kind):
    images, texts = CONVERSATIONS[name]
    tokenizer = family_tokenizer(kind)
    encoded = renderer(kind, template).render(conversation(*texts, images=images))
    expected = apply(tokenizer, template, texts, return_assistant_tokens_mask=True)
    assert encoded.tokens.tolist() == expected["input_ids"]
    assert encoded.loss.astype(int).tolist() == expected["assistant_masks"]
    assert (encoded.tokens == tokenizer.image_token_id).sum() == images


@pytest.mark.parametrize("kind", KINDS)
def test_plain_equals_apply_chat_template(kind):
    texts = ["Describe this: <image>\nand this: <image>", "Two cats, 日本."]
    encoded = renderer(kind, "plain").render(conversation(*texts, images=2))
    expected = apply(family_tokenizer(kind), "plain", texts, return_assistant_tokens_mask=True)
    assert encoded.tokens.tolist() == expected["input_ids"]
    assert encoded.loss.astype(int).tolist() == expected["assistant_masks"]


text = st.text(st.characters(codec="utf-8", exclude_characters="<▁"), min_size=1, max_size=30).filter(str.strip)
pairs = st.lists(text, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0)


@settings(max_examples=25)
@given(texts=pairs)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", CHAT)
def test_any_text_equals_apply_chat_template(template, kind, texts):
    texts = [f"<image>\n{texts[0]}", *texts[1:]]
    encoded = renderer(kind, template).render(conversation(*texts))
    assert encoded.tokens.tolist() == apply(family_tokenizer(kind), template, texts)["input_ids"]


LOSS = {  # what the model must say, in runs of tokens
    "llama3": ["A cat.<|eot_id|>", "日本<|eot_id|>"],
    "vicuna": [" A cat.<|end_of_text|>", " 日本<|end_of_text|>"],
    "llama2": [" A cat. <|end_of_text|>", " 日本 <|end_of_text|>"],
    "chatml": ["A cat.<|im_end|>", "日本<|im_end|>"],
    "mistral": [" A cat.<|end_of_text|>", " 日本<|end_of_text|>"],
}


@pytest.mark.parametrize("template", CHAT)
def test_masks_token_by_token(template):
    tokenizer = family_tokenizer("byte-level")
    turns = conversation("Hello", "Hi.", "Before <image> between <image> after", "A cat.", "7 é🙂?", "日本", images=2)
    encoded = renderer("byte-level", template).render(turns)
    said = runs(tokenizer, encoded.tokens, encoded.loss)
    assert said == [LOSS[template][0].replace("A cat", "Hi"), *LOSS[template]]
    assert runs(tokenizer, encoded.tokens, encoded.user_turn == 1) == [" after"]
    assert runs(tokenizer, encoded.tokens, encoded.user_turn == 2) == ["7 é🙂?"]
    # Every token is of one sort: template, question, image, answer.
    asks = encoded.user_turn >= 0
    assert not (encoded.loss & asks).any()
    marked = encoded.loss | asks | (encoded.tokens == tokenizer.image_token_id)
    rest = "".join(runs(tokenizer, encoded.tokens, ~marked))
    assert "after" not in rest and "日" not in rest and "cat" not in rest and "Hello" in rest and "between" in rest


def test_a_character_of_several_tokens_belongs_as_a_whole():
    for kind in KINDS:
        encoded = renderer(kind, "chatml").render(conversation("<image>\n🙂", "𝄞"))
        tokenizer = family_tokenizer(kind)
        assert runs(tokenizer, encoded.tokens, encoded.loss) == ["𝄞<|im_end|>"]
        assert encoded.loss.sum() == 4 + 1  # four bytes and the end
        # A word's beginning that SentencePiece puts behind the image comes with the text.
        assert (encoded.user_turn == 0).sum() == 1 + 4 + (kind == "sentencepiece")


def test_turns_are_numbered_by_the_answers_before_them():
    render = renderer("byte-level", "llama3").render
    tokenizer = family_tokenizer("byte-level")
    encoded = render(conversation("<image>\nOne?", "A.", "Two?", "B."))
    assert runs(tokenizer, encoded.tokens, encoded.user_turn == 0) == ["\nOne?"]
    assert runs(tokenizer, encoded.tokens, encoded.user_turn == 1) == ["Two?"]
    encoded = render(conversation("<image>\nOne?", "A.", "<image>\nTwo?", "B.", images=2))
    assert runs(tokenizer, encoded.tokens, encoded.user_turn == 1) == ["\nTwo?"]
    assert set(encoded.user_turn) == {-1, 1}
    assert set(render(conversation("One?", "A.", images=0)).user_turn) == {-1}


SPECIAL = [*LLAMA3_SPECIAL_TOKENS, "<|im_start|>", "<|im_end|>", "<|pad|>", "<s>", "</s>", "<unk>"]
pieces = st.one_of(
    st.sampled_from([*SPECIAL, "[INST]", "[/INST]", " USER:", "<<SYS>>", "\n", " ", "\ue000", "\ue0000\ue001"]),
    st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=8),
)
attack = st.lists(pieces, min_size=1, max_size=6).map("".join).filter(str.strip)


@settings(max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [*CHAT, "plain"])
def test_no_text_becomes_special_and_none_is_lost(template, kind, data):
    tokenizer = family_tokenizer(kind)
    questions = data.draw(st.lists(attack.filter(lambda t: "<image>" not in t), min_size=1, max_size=3))
    questions = questions[:1] if template == "plain" else questions
    answers = [data.draw(st.one_of(attack, attack.map("see <image>".__add__))) for _ in questions]
    images = data.draw(st.lists(st.integers(0, 2), min_size=len(questions), max_size=len(questions)))
    images[0] += template == "plain" and images[0] == 0
    texts = [t for n, q, a in zip(images, questions, answers, strict=True) for t in ("<image>\n" * n + q, a)]
    turns = conversation(*texts, images=sum(images))
    encoded = renderer(kind, template).render(turns)
    harmless = ["<image>\n" * n + "a" if i == 0 else "b" for n in images for i in range(2)]
    special = np.array(tokenizer.all_special_ids)
    expected = np.array(apply(tokenizer, template, harmless)["input_ids"])
    found = encoded.tokens[np.isin(encoded.tokens, special)].tolist()
    assert found == expected[np.isin(expected, special)].tolist()
    said = runs(tokenizer, encoded.tokens, encoded.loss)
    assert len(said) == len(answers)
    for run, answer in zip(said, answers, strict=True):
        end = tokenizer.convert_ids_to_tokens(renderer(kind, template).end_ids[0])
        assert run.endswith(end)
        assert run.removesuffix(end).strip() == answer.strip()


def test_labels_are_shifted():
    encoded = renderer("byte-level", "vicuna").render(conversation("<image>\nWhat?", "A cat.", "Sure?", "Yes."))
    labels = encoded.labels()
    assert labels[-1] == IGNORE_INDEX
    predicted = np.flatnonzero(labels != IGNORE_INDEX)
    assert np.array_equal(predicted + 1, np.flatnonzero(encoded.loss))
    assert np.array_equal(labels[predicted], encoded.tokens[predicted + 1])


def test_plain_form():
    render = renderer("byte-level", "plain").render
    tokenizer = family_tokenizer("byte-level")
    encoded = render(conversation("<image>\nDescribe it.", "A cat on a mat."))
    assert tokenizer.decode(encoded.tokens) == "<|begin_of_text|><image>A cat on a mat.<|end_of_text|>"
    assert tokenizer.decode(encoded.tokens[encoded.loss]) == "A cat on a mat.<|end_of_text|>"
    assert encoded.labels()[1] == encoded.tokens[2]  # the caption's first token is predicted at the image
    assert (encoded.user_turn == -1).all()
    assert renderer("byte-level", "plain").instruction_markers() == ([], [])
    for turns in (conversation("No image", "x", images=0), conversation("<image>", "x", "y", "z")):
        with pytest.raises(SampleError, match="template plain is for images with one caption") as error:
            render(turns)
        assert error.value.reason == "not a caption"


def with_template(chat_template, kind="byte-level", **options):
    base = family_tokenizer(kind)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(base.backend_tokenizer.to_str()),
        bos_token=base.bos_token,
        pad_token="<|pad|>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=chat_template,
        **{"eos_token": base.eos_token} | options,
    )


OWN = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant:{% endif %}"
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizers_own_template(kind):
    tokenizer = with_template(OWN, kind)
    encoded = Renderer(tokenizer, "tokenizer").render(conversation("<image>\nWhat?", "日 A </s> cat.", "7?", "Red"))
    messages = [("user", "<image>\nWhat?"), ("assistant", "日 A cat."), ("user", "7?"), ("assistant", "Red")]
    turns = [Turn(*message) for message in messages]
    direct = tokenizer.apply_chat_template([vars(turn) | {"content": turn.text} for turn in turns], return_dict=True)
    assert Renderer(tokenizer, "tokenizer").render(turns).tokens.tolist() == direct["input_ids"]
    end = tokenizer.eos_token
    said = [run.strip() for run in runs(tokenizer, encoded.tokens, encoded.loss)]
    assert said == [f"日 A </s> cat.{end}", f"Red{end}"]


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        (None, "has no chat template of its own; choose a named template"),
        (OWN + "{{ strftime_now('%d') }}", "writes today's date; choose a named template"),
        (OWN.replace("eos_token", "'###'"), "does not end with a special token of the tokenizer but with '###"),
        (OWN.replace("m.content", "m.content | upper"), "changes the texts of a conversation"),
        (OWN.replace("m.content", "m.content.split()[0]"), "changes the texts of a conversation"),
        (OWN.replace("m.content", "m.content ~ m.content"), "writes a text more than once"),
        (OWN.replace("m.content", "''"), "does not write every text once and in order"),
        (OWN.replace("messages %", "messages[::-1] %"), "does not write every text once and in order"),
        (OWN.replace("<|start_header_id|>{{ m.role }}: ", ""), "does not mark where a user's text begins"),
        ("{{ raise_exception('no') }}", "cannot be applied to a conversation: no"),
        (OWN.replace("{{ eos", "<|pad|>{{ eos"), "pad_token '<|pad|>' also stands in conversations"),
    ],
)
def test_templates_that_cannot_be_used(chat_template, message):
    with pytest.raises(ValueError) as error:
        Renderer(with_template(chat_template), "tokenizer")
    assert message in str(error.value)


def test_unknown_template_and_missing_tokens():
    with pytest.raises(ValueError, match=r"unknown chat template 'alpaca', expected one of llama3, .*tokenizer"):
        Renderer(family_tokenizer("byte-level"), "alpaca")
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match="has no token '<image>'"):
        Renderer(bare, "llama3")
    bare.add_special_tokens({"additional_special_tokens": ["<image>"]})
    with pytest.raises(ValueError, match="chat template chatml: an answer does not end with a special token"):
        Renderer(bare, "chatml")
    with pytest.raises(ValueError, match="chat template vicuna: an answer does not end with a special token"):
        Renderer(bare, "vicuna")


def test_role_tokens_that_text_can_produce_are_refused():
    backend = Tokenizer.from_str(family_tokenizer("byte-level").backend_tokenizer.to_str())
    description = json.loads(backend.to_str())
    for token in description["added_tokens"]:
        token["special"] = token["content"] != "<|start_header_id|>"
    loose = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)), bos_token="<|begin_of_text|>"
    )
    with pytest.raises(ValueError, match=r"\['<\|start_header_id\|>'\] are not special tokens"):
        Renderer(loose, "llama3")


def test_hash_follows_tokenizer_and_template():
    hashes = {renderer(kind, template).hash for kind in KINDS for template in CHAT_TEMPLATES}
    assert len(hashes) == len(KINDS) * len(CHAT_TEMPLATES)
    again = Renderer(with_template(CHAT_TEMPLATES["vicuna"]), "tokenizer")
    assert again.hash == renderer("byte-level", "vicuna").hash == Renderer(family_tokenizer(KINDS[0]), "vicuna").hash
    assert Renderer(with_template(None, eos_token="<|im_end|>"), "vicuna").hash != again.hash


def test_ends_of_answers():
    ends = {template: renderer("byte-level", template).end_ids for template in CHAT_TEMPLATES}
    ids = family_tokenizer("byte-level").convert_tokens_to_ids
    assert ends == {
        "llama3": [ids("<|eot_id|>")],
        "chatml": [ids("<|im_end|>")],
        **{template: [ids("<|end_of_text|>")] for template in ("vicuna", "llama2", "mistral", "plain")},
    }


def test_llama3_equals_metas_own_encoder():
    """Ids of a conversation, also one whose texts look like special tokens, against Meta's chat format."""
    file = Path(llama3_tokenizer.__file__).with_name("tokenizer.model")
    theirs = MetaTokenizer(file)
    special = sorted(theirs.special_tokens, key=theirs.special_tokens.get)
    backend = TikTokenConverter(str(file), pattern=LLAMA3_PATTERN, extra_special_tokens=special).converted()
    llama = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    ours = add_image_and_pad(llama, "llama3")
    assert ours.convert_tokens_to_ids(["<image>", "<|pad|>"]) == [128256, 128257]
    turns = [
        Turn("user", "What's 12345 日本?\n\n  x"),
        Turn("assistant", "Four <|eot_id|> 🙂\tcafé"),
        Turn("user", "7?"),
    ]
    messages = [RawMessage(role="system", content=SYSTEM_MESSAGES["llama3"])]
    for turn in turns:
        stop = {"stop_reason": StopReason.end_of_turn} if turn.role == "assistant" else {}
        messages.append(RawMessage(role=turn.role, content=turn.text, **stop))
    expected = ChatFormat(theirs).encode_dialog_prompt(messages).tokens
    tokens = Renderer(ours, "llama3").render([*turns, Turn("assistant", "Yes")]).tokens.tolist()
    assert tokens[:-2] == expected


def test_mistral_equals_mistrals_own_encoder(tmp_path):
    """Ids of a conversation against mistral-common, with the tokenizer file of Mistral 7B Instruct v0.1 and v0.2."""
    pytest.importorskip("mistral_common", reason="needs the packages mistral-common and sentencepiece")
    pytest.importorskip("sentencepiece", reason="needs the packages mistral-common and sentencepiece")
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import InstructRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    folder = Path(importlib.util.find_spec("mistral_common").submodule_search_locations[0])
    (tmp_path / "tokenizer.model").write_bytes((folder / "data" / "tokenizer.model.v1").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True}))
    ours = add_image_and_pad(AutoTokenizer.from_pretrained(tmp_path), "mistral")
    texts = ["What is 2 + 2?\n\nSay: 日本 🙂", "Four (4).\n- é", "7 more?", "日", "(ok)", "Eleven"]
    messages = [(UserMessage, AssistantMessage)[i % 2](content=text) for i, text in enumerate(texts)]
    expected = MistralTokenizer.v1().instruct_tokenizer.encode_instruct(InstructRequest(messages=messages)).tokens
    assert Renderer(ours, "mistral").render(conversation(*texts, images=0)).tokens.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", CHAT)
def test_image_as_text_of_a_sample_without_images(template, kind):
    """The ids are those of any other text: none is an image's, and what they say is what was asked."""
    tokenizer = family_tokenizer(kind)
    turns = conversation("Is <image> a tag?", "Yes: <image>.", "Sure?", "Yes.", images=0)
    encoded = renderer(kind, template).render(turns)
    assert tokenizer.convert_tokens_to_ids("<image>") not in encoded.tokens
    said = [tokenizer.decode(tokens) for tokens in (encoded.tokens, encoded.tokens[encoded.loss])]
    assert said[0].count("<image>") == 2 and said[1].count("<image>") == 1
    assert (encoded.user_turn == -1).all()
