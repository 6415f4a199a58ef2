import json

import pytest

from data_pipeline.conversations.conversation import Turn, parse_conversation
from data_pipeline.errors import SampleError


def llava(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def test_turns():
    turns = parse_conversation(llava(" What is 2 + 2?\n", "\t4 ", "Sure?", "Yes."), 0)
    roles = ["user", "assistant", "user", "assistant"]
    assert turns == [Turn(r, t) for r, t in zip(roles, ["What is 2 + 2?", "4", "Sure?", "Yes."], strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<image>\nWhat?", "<image>\nWhat?"),
        ("What?\n<image>", "<image>\nWhat?"),
        ("What <image> is it?", "<image>\nWhat  is it?"),
        ("<image>", "<image>"),
        ("First <image> then <image>.", "First <image> then <image>."),
    ],
)
def test_a_single_image_comes_first(text, expected):
    (question, answer) = parse_conversation(llava(text, "see <image>"), text.count("<image>"))
    assert question.text == expected
    assert answer.text == "see <image>"  # in an answer it is text


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


@pytest.mark.parametrize(
    ("conversations", "num_images", "reason"),
    [
        (None, 0, "no conversation"),
        ([1], 0, "broken turn"),
        ([{"from": "system", "value": "x"}], 0, "unknown role"),
        (llava("a", "b")[::-1], 0, "turns out of order"),
        (llava("", "b"), 0, "empty text"),
        (llava("a", "\udfff"), 0, "broken text"),
        (llava("a", "b", "c"), 0, "no answer"),
        (llava("<image>", "b"), 2, "image count mismatch"),
    ],
)
def test_reasons(conversations, num_images, reason):
    with pytest.raises(SampleError) as error:
        parse_conversation(conversations, num_images)
    assert error.value.reason == reason


def test_values_in_messages_are_short():
    nested = json.loads("[" * 900 + "]" * 900)
    for value in ("x" * 10**6, ["x"] * 10**6, nested, {str(i): i for i in range(10**5)}):
        for conversations in (value, [value], [{"from": value}], [{"from": "gpt", "value": value}]):
            with pytest.raises(SampleError) as error:
                parse_conversation(conversations, 0)
            assert len(str(error.value)) < 1000
