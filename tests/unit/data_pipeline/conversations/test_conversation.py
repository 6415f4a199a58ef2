import json

import pytest

from data_pipeline.conversations.conversation import Conversation, Turn, parse_conversation
from data_pipeline.errors import SampleError

DROPPED = ("system turn", "leading answer", "trailing question")


def llava(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def test_turns():
    parsed = parse_conversation(llava(" What is 2 + 2?\n", "\t4 ", "Sure?", "Yes."), 0)
    roles = ["user", "assistant", "user", "assistant"]
    expected = [Turn(r, t) for r, t in zip(roles, ["What is 2 + 2?", "4", "Sure?", "Yes."], strict=True)]
    assert parsed == Conversation(turns=tuple(expected), changes=())


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
    (question, answer) = parse_conversation(llava(text, "see <image>"), text.count("<image>")).turns
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
        (
            [{"from": "gpt", "value": "x"}],
            0,
            r"key conversations: no answer to the last question: \[\{'from': 'gpt', 'v",
        ),
        (llava("a") * 2, 0, r"key conversations: no answer to the last question: \[\{'from': 'hum"),
        ([{"from": "system", "value": "x"}] * 2, 0, r"conversations\[1\]\.from: expected human, not 'system'"),
        ([*llava("a", "b"), {"from": "gpt", "value": "c"}], 0, r"conversations\[2\]\.from: expected human, not 'gpt'"),
        (llava("a", "  \n"), 0, r"key conversations\[1\]\.value: expected a text that is not empty, not '  \\n'"),
        ([{"from": "human", "value": 3}, *llava("a", "b")[1:]], 0, r"key conversations\[0\]\.value: .*not 3"),
        ([{"role": "user", "content": 3}, *llava("a", "b")[1:]], 0, r"key conversations\[0\]\.content: .*not 3"),
        ([{"role": "bot", "content": "x"}], 0, r"key conversations\[0\]\.role: expected human or gpt, not 'bot'"),
        (llava("a"), 0, r"key conversations: no answer to the last question: \[\{'from': 'human', 'value': 'a'\}\]"),
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
        ([{"from": "bot", "value": "x"}], 0, "unknown role"),
        ([{"from": "system", "value": "x"}], 0, "no answer"),
        (llava("a", "b") + llava("c", "d")[::-1], 0, "turns out of order"),
        (llava("a", "b", "c") + llava("d"), 0, "no answer"),
        (llava("a", "b")[::-1], 0, "no answer"),
        (llava("", "b"), 0, "empty text"),
        (llava("a", "\udfff"), 0, "broken text"),
        (llava("a"), 0, "no answer"),
        (llava("<image>", "b"), 2, "image count mismatch"),
        (llava("<image>\na", "b"), 0, "image count mismatch"),
        (llava("a", "b", "<image>\nc"), 1, "image in an unanswered question"),
        (llava("<image>\na", "b", "<image>\nc"), 2, "image in an unanswered question"),
        (llava("a", "b", "c"), 1, "image without placeholder"),
        (llava("a", "b"), 1, "image without placeholder"),
    ],
)
def test_reasons(conversations, num_images, reason):
    with pytest.raises(SampleError) as error:
        parse_conversation(conversations, num_images)
    assert error.value.reason == reason


SYSTEM = {"from": "system", "value": ""}
USER = [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]
ROLE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("conversations", "changes"),
    [
        (llava("a", "b"), ()),
        (USER, ("user and assistant",)),
        (ROLE, ("role and content",)),
        ([SYSTEM, *USER], ("user and assistant", "system turn dropped")),
        ([{"role": "system", "content": "Be short."}, *ROLE], ("role and content", "system turn dropped")),
        (llava("x", "y", "a", "b")[1:], ("leading answer dropped",)),
        (llava("a", "b", "c"), ("trailing question dropped",)),
        ([SYSTEM, *llava("", " ", "a", "b", "")[1:]], tuple(f"{what} dropped" for what in DROPPED)),
    ],
)
def test_what_the_loaders_of_llava_accept(conversations, changes):
    """LLaVA's train.py drops a first turn that is not human's and learns nothing from a last question; LLaVA-NeXT's
    takes role and content and every role's own name. What is dropped is not looked at, except for its role."""
    assert parse_conversation(conversations, 0) == Conversation((Turn("user", "a"), Turn("assistant", "b")), changes)


@pytest.mark.parametrize("text", ["What does <image> do in HTML?", "<image>\nWhat?", "What?\n <image>", "<image>"])
def test_image_in_a_sample_that_is_text_only(text):
    """It is text where it stands, as in LLaVA's loader; with a place for an image it asks about one that is lost."""
    conversations = llava(text, "Nothing: <image>.", "Why?", "It is obsolete.")
    parsed = parse_conversation(conversations, 0, text_only=True)
    assert [turn.text for turn in parsed.turns] == [entry["value"].strip() for entry in conversations]
    assert [turn.text_only for turn in parsed.turns] == [True, False, False, False]
    assert parsed.changes == ("<image> as text",) and sum(turn.images for turn in parsed.turns) == 0
    assert [Turn(**turn.stored()) for turn in parsed.turns] == list(parsed.turns)
    with pytest.raises(SampleError, match="1 <image> in the questions, but 0 images"):
        parse_conversation(conversations, 0)


def test_values_in_messages_are_short():
    nested = json.loads("[" * 900 + "]" * 900)
    for value in ("x" * 10**6, ["x"] * 10**6, nested, {str(i): i for i in range(10**5)}):
        for conversations in (value, [value], [{"from": value}], [{"from": "gpt", "value": value}]):
            with pytest.raises(SampleError) as error:
                parse_conversation(conversations, 0)
            assert len(str(error.value)) < 1000
