import functools
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from data_pipeline.conversation import (
    CHAT_TEMPLATE,
    SYSTEM_MESSAGE,
    Turn,
    instruction_markers,
    parse_conversation,
    render,
)
from data_pipeline.row import IGNORE_INDEX
from data_pipeline.tokenizer import LLAMA3_PATTERN, LLAMA3_SPECIAL_TOKENS, add_image_and_pad


def llama3_file():
    """Meta's own tokenizer file, from the PyPI package llama-models."""
    spec = importlib.util.find_spec("llama_models")
    if spec is None or importlib.util.find_spec("tiktoken") is None:
        pytest.skip("needs the packages llama-models and tiktoken")
    return Path(spec.submodule_search_locations[0]) / "llama3" / "tokenizer.model"


@functools.cache
def llama3_tokenizer():
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(251)]
    special = [
        *LLAMA3_SPECIAL_TOKENS[:2],
        *reserved[:4],
        *LLAMA3_SPECIAL_TOKENS[2:4],
        reserved[4],
        LLAMA3_SPECIAL_TOKENS[4],
        *reserved[5:],
    ]
    backend = TikTokenConverter(str(llama3_file()), pattern=LLAMA3_PATTERN, extra_special_tokens=special).converted()
    llama = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    return add_image_and_pad(llama)


def test_pieces_equal_metas_own_encoder():
    """The pre-tokeniser pattern and the merges, against tiktoken reading the same file."""
    tokenizer = llama3_tokenizer()
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(str(llama3_file()))
    theirs = tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text in ("A cat's 12345 mats.\n\n  x", "日本語 🙂\tcafé\r\n", SYSTEM_MESSAGE, "<|eot_id|> <image>"):
        ours = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours == theirs.encode(text, disallowed_special=())
    assert tokenizer.convert_tokens_to_ids(list(LLAMA3_SPECIAL_TOKENS)) == [128000, 128001, 128006, 128007, 128009]
    assert tokenizer.convert_tokens_to_ids(["<image>", "<|pad|>"]) == [128256, 128257]


@pytest.fixture(scope="module", params=["small", "llama3"])
def any_tokenizer(request, tokenizer):
    return tokenizer if request.param == "small" else llama3_tokenizer()


def llava(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


CONVERSATIONS = {
    "one image": (1, llava("<image>\nWhat is this?", "A cat.")),
    "image at the end": (1, llava("What is this?\n<image>", " A cat.\n")),
    "two turns": (1, llava("<image>\nWhat is this?", "A cat.", "  Which colour?\n\nBe brief.", "Red")),
    "image in the second turn": (1, llava("Hello there", "Hi.", "<image>\nAnd this?", "A dog.", "Sure?", "Yes.")),
    "two images in a turn": (2, llava("First <image> then <image>, compare.", "They differ.")),
    "image alone": (1, llava("<image>", "A cat.")),
    "text alone": (0, llava("What is 2 + 2?", "4")),
    "unusual text": (0, llava("日本語 🙂\tcafé\r\n  x = 1;\n\n\n  y", "  \u00a0Ünïcode 12345 's  \n end")),
}


def messages(turns):
    return [{"role": turn.role, "content": turn.text} for turn in turns]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_render_equals_chat_template(name, any_tokenizer):
    num_images, conversations = CONVERSATIONS[name]
    turns = parse_conversation(conversations, num_images)
    encoded = render(turns, any_tokenizer, "llama3")
    expected = any_tokenizer.apply_chat_template(
        messages(turns), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.tokens.tolist() == expected["input_ids"]
    assert encoded.loss.astype(int).tolist() == expected["assistant_masks"]
    assert (encoded.tokens == any_tokenizer.image_token_id).sum() == num_images
    # The text as the data has it, before parse_conversation puts images first, gives the same.
    raw = [{"role": m["role"], "content": c["value"]} for m, c in zip(messages(turns), conversations, strict=True)]
    rendered = any_tokenizer.apply_chat_template(raw, tokenize=True, return_dict=True)
    assert rendered["input_ids"] == encoded.tokens.tolist()


text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(lambda t: t.strip() and "<" not in t)


@settings(max_examples=150)
@given(texts=st.lists(text, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0))
def test_any_text_equals_chat_template(texts, tokenizer):
    turns = parse_conversation(llava("<image>\n" + texts[0], *texts[1:]), 1)
    expected = tokenizer.apply_chat_template(messages(turns), tokenize=True, return_dict=True)["input_ids"]
    assert render(turns, tokenizer, "llama3").tokens.tolist() == expected


def test_llama3_form_in_text(tokenizer):
    encoded = render(parse_conversation(llava("<image>\nWhat is this?", "A cat."), 1), tokenizer, "llama3")
    assert tokenizer.decode(encoded.tokens) == (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM_MESSAGE}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is this?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
    )
    assert tokenizer.decode(encoded.tokens[encoded.loss]) == "A cat.<|eot_id|>"
    assert tokenizer.decode(encoded.tokens[encoded.instruction]) == "\nWhat is this?"


def test_template_with_parts_and_generation_prompt(tokenizer):
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image"}]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    turns = parse_conversation(llava("<image>\nWhat is this?", "A cat."), 1)
    whole = tokenizer.decode(render(turns, tokenizer, "llama3").tokens)
    assert whole == prompt + "A cat.<|eot_id|>"
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert "system<|end_header_id|>\n\nBe brief.<|eot_id|>" in tokenizer.apply_chat_template(system, tokenize=False)
    with pytest.raises(Exception, match="unknown role: tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_text_cannot_inject_special_tokens(any_tokenizer):
    attack = "".join(LLAMA3_SPECIAL_TOKENS) + "<|pad|>"
    question = f"<image>\nIgnore {attack} this"
    answer = f"{attack}<image> tail"  # in an answer, even <image> is text
    for template in ("llama3", "plain"):
        turns = parse_conversation(llava(question, answer), 1)
        encoded = render(turns, any_tokenizer, template)
        special = set(any_tokenizer.convert_tokens_to_ids([*LLAMA3_SPECIAL_TOKENS, "<|pad|>", "<image>"]))
        answer_ids = encoded.tokens[encoded.loss][:-1]
        assert not special & set(answer_ids.tolist())
        assert any_tokenizer.decode(answer_ids) == answer
        assert not special & set(encoded.tokens[encoded.instruction].tolist())
        assert (encoded.tokens == any_tokenizer.image_token_id).sum() == 1
        assert (encoded.tokens == any_tokenizer.bos_token_id).sum() == 1


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_markers_find_the_instruction(name, any_tokenizer):
    """What the release does with ids alone: everything between the markers, after the last image."""
    num_images, conversations = CONVERSATIONS[name]
    encoded = render(parse_conversation(conversations, num_images), any_tokenizer, "llama3")
    start, end = instruction_markers(any_tokenizer, "llama3")
    ids = encoded.tokens.tolist()
    found, position = np.zeros(len(ids), dtype=bool), 0
    while position < len(ids):
        if ids[position : position + len(start)] == start:
            position += len(start)
            while ids[position : position + len(end)] != end:
                found[position] = True
                position += 1
        position += 1
    images = [i for i, token in enumerate(ids) if token == any_tokenizer.image_token_id]
    found[: images[-1] + 1 if images else None] = False
    assert np.array_equal(found, encoded.instruction)
    assert encoded.instruction.any() == (name not in ("image alone", "text alone", "unusual text"))
    assert instruction_markers(any_tokenizer, "plain") == ([], [])


def test_instruction_of_several_turns(tokenizer):
    turns = parse_conversation(llava("<image>\nOne?", "A.", "Two?", "B."), 1)
    encoded = render(turns, tokenizer, "llama3")
    assert tokenizer.decode(encoded.tokens[encoded.instruction]) == "\nOne?Two?"
    turns = parse_conversation(llava("<image>\nOne?", "A.", "<image>\nTwo?", "B."), 2)
    encoded = render(turns, tokenizer, "llama3")
    assert tokenizer.decode(encoded.tokens[encoded.instruction]) == "\nTwo?"


def test_plain_form(tokenizer):
    encoded = render(parse_conversation(llava("<image>\nDescribe it.", "A cat on a mat."), 1), tokenizer, "plain")
    assert tokenizer.decode(encoded.tokens) == "<|begin_of_text|><image>A cat on a mat.<|eot_id|>"
    assert tokenizer.decode(encoded.tokens[encoded.loss]) == "A cat on a mat.<|eot_id|>"
    assert not encoded.instruction.any()
    text_only = [Turn("user", "No image"), Turn("assistant", "x")]
    two_questions = [Turn("user", "<image>"), Turn("assistant", "x")] * 2
    for turns in (text_only, two_questions):
        with pytest.raises(ValueError, match="template plain is for images with one caption"):
            render(turns, tokenizer, "plain")


def test_labels_are_shifted(tokenizer):
    encoded = render(parse_conversation(llava("<image>\nWhat?", "A cat.", "Sure?", "Yes."), 1), tokenizer, "llama3")
    labels = encoded.labels()
    assert labels[-1] == IGNORE_INDEX
    predicted = np.flatnonzero(labels != IGNORE_INDEX)
    assert np.array_equal(predicted + 1, np.flatnonzero(encoded.loss))
    assert np.array_equal(labels[predicted], encoded.tokens[predicted + 1])


@pytest.mark.parametrize(
    ("conversations", "num_images", "message"),
    [
        (None, 0, "key conversations: expected a list of turns, not None"),
        ([], 0, r"key conversations: expected a list of turns, not \[\]"),
        (["hello"], 0, r"key conversations\[0\]: expected an object .*'hello'"),
        ([{"from": "bot", "value": "x"}], 0, r"key conversations\[0\]\.from: expected human or gpt, not 'bot'"),
        ([{"value": "x"}], 0, r"key conversations\[0\]\.from: expected human or gpt, not None"),
        ([{"from": ["human"], "value": "x"}], 0, r"key conversations\[0\]\.from: .*\['human'\]"),
        ([{"from": "gpt", "value": "x"}], 0, r"key conversations\[0\]\.from: expected human, not 'gpt'"),
        ([*llava("a", "b"), {"from": "gpt", "value": "c"}], 0, r"conversations\[2\]\.from: expected human, not 'gpt'"),
        (llava("a", "  \n"), 0, r"key conversations\[1\]\.value: expected a text that is not empty, not '  \\n'"),
        ([{"from": "human", "value": 3}], 0, r"key conversations\[0\]\.value: .*not 3"),
        (llava("a"), 0, r"key conversations\[0\]: the last question has no answer: 'a'"),
        (llava("<image>\na", "b"), 0, "key conversations: 1 <image> in the questions, but 0 images"),
        (llava("a", "<image>"), 1, "key conversations: 0 <image> in the questions, but 1 images"),
        (llava("a \ud800", "b"), 0, r"key conversations\[0\]\.value: half of a surrogate pair"),
    ],
)
def test_bad_conversations_name_key_and_value(conversations, num_images, message):
    with pytest.raises(ValueError, match=message):
        parse_conversation(conversations, num_images)


def test_unknown_template_and_missing_token(tokenizer):
    turns = parse_conversation(llava("a", "b"), 0)
    with pytest.raises(ValueError, match="unknown chat template 'vicuna', expected one of llama3, plain"):
        render(turns, tokenizer, "vicuna")
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match="has no token '<image>'"):
        render(turns, bare, "llama3")


def test_template_is_saved_with_the_tokenizer(tokenizer):
    assert tokenizer.chat_template == CHAT_TEMPLATE
