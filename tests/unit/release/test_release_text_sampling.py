"""The release's text-guided sampler against the float64 reference of Eq. 6-9, and the instruction it finds in ids."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.conversations.chat_templates import CHAT_TEMPLATES
from data_pipeline.conversations.conversation import Turn
from data_pipeline.conversations.rendering import Renderer
from megatron_focus.release.text_sampling import importance, important_enough, instruction_mask
from tests.reference.text_guided import text_guided_reference
from tests.unit.data_pipeline.family_tokenizers import KINDS, family_tokenizer
from tests.unit.release.tiny_models import IMAGE


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("gamma", [0.3, 0.85, 1.0])
def test_scores_and_choice_equal_the_reference(key_heads, gamma):
    generator = torch.Generator().manual_seed(key_heads)
    q = torch.randn(5, 4, 16, generator=generator)
    k = torch.randn(30, key_heads, 16, generator=generator)
    image = torch.arange(30) // 11
    expected = text_guided_reference(q, k, image, gamma)
    scores = importance(q, k, 16**-0.5)
    # float32 against float64: measured 1.4e-8 at most, scores are up to 0.21.
    torch.testing.assert_close(scores.double(), expected["scores"], atol=2e-7, rtol=0)
    assert important_enough(scores, image, gamma).nonzero()[:, 0].tolist() == expected["keep"].tolist()


def test_share_must_be_exceeded_not_reached():
    scores, image = torch.tensor([0.5, 0.25, 0.25]), torch.zeros(3, dtype=torch.long)
    assert important_enough(scores, image, 0.5).tolist() == [True, True, False]
    assert important_enough(scores, image, 0.49).tolist() == [True, False, False]


def test_ties_go_to_the_earlier_token():
    kept = important_enough(torch.ones(8), torch.zeros(8, dtype=torch.long), 0.3)
    assert kept.tolist() == [True] * 3 + [False] * 5


def test_every_image_keeps_its_best_token():
    scores = torch.tensor([0.01, 0.02, 0.9, 0.03, 0.02, 0.02])
    image = torch.tensor([4, 4, 5, 5, 7, 7])
    assert important_enough(scores, image, 0.5).tolist() == [False, True, True, False, True, False]


CONVERSATIONS = [
    [Turn("user", "<image>\nwhat is it?"), Turn("assistant", "a cat")],
    [Turn("user", "<image>\nname it"), Turn("assistant", "a cat"), Turn("user", "colour?"), Turn("assistant", "red")],
    [Turn("user", "hi"), Turn("assistant", "yes?"), Turn("user", "<image>\n<image> differ?"), Turn("assistant", "no")],
    [Turn("user", "first <image> second <image> third"), Turn("assistant", "ok")],
    [Turn("user", "no image at all"), Turn("assistant", "indeed")],
    [Turn("user", "<image>"), Turn("assistant", "a caption")],
    [Turn("user", "<image>"), Turn("assistant", "日本"), Turn("user", "7"), Turn("assistant", "(8)")],
    [Turn("user", "(a) <image>"), Turn("assistant", "é"), Turn("user", "日本 🙂"), Turn("assistant", "'s")],
    [Turn("user", "<image>\n1"), Turn("assistant", "-"), Turn("user", "2 <b>"), Turn("assistant", "3")] * 3,
]


def check_markers(kind, template, conversations):
    """The latest turn found in ids alone, with each placeholder repeated and rows padded on the left."""
    tokenizer = family_tokenizer(kind)
    renderer = Renderer(tokenizer, template)
    image = tokenizer.image_token_id
    rows, expected = [], []
    for turns in conversations:
        encoded = renderer.render(turns)
        repeats = torch.tensor([3 if token == image else 1 for token in encoded.tokens])
        rows.append(torch.tensor(encoded.tokens).repeat_interleave(repeats))
        asks = encoded.user_turn == sum(turn.role == "user" for turn in turns) - 1
        expected.append(torch.tensor(asks).repeat_interleave(repeats))
    longest = max(map(len, rows))
    pad = tokenizer.pad_token_id
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=pad) for row in rows])
    want = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in expected])
    assert torch.equal(instruction_mask(ids, ids == image, *renderer.instruction_markers()), want)
    return want


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_the_latest_user_turn_asks(template, kind):
    conversations = CONVERSATIONS[:1] if template == "plain" else CONVERSATIONS
    found = check_markers(kind, template, conversations)
    assert bool(found.any()) == (template != "plain")


# Without the words and characters that the markers are made of.
word = st.text(st.characters(codec="utf-8", exclude_characters="<▁[:S\n"), min_size=1, max_size=12).map(str.strip)


@settings(max_examples=25, database=None, deadline=None, derandomize=True)
@given(texts=st.lists(word.filter(bool), min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [name for name in CHAT_TEMPLATES if name != "plain"])
def test_instruction_of_any_text(template, kind, texts):
    turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    check_markers(kind, template, [[Turn("user", f"<image>\n{texts[0]}"), *turns[1:]]])


def test_instruction_of_a_turn_that_has_not_ended():
    ids = torch.tensor([[7, 9, 9, 8, IMAGE, 5, 6]])
    assert instruction_mask(ids, ids == IMAGE, [[9, 9]], [[1]]).tolist() == [[False] * 5 + [True] * 2]


def test_the_longest_marker_counts():
    ids = torch.tensor([[IMAGE, 9, 4, 5, 1, 6, 9, 5, 2, 1, 9, 4]])
    found = instruction_mask(ids, ids == IMAGE, [[9], [9, 4]], [[1], [2, 1]])
    assert found[0].nonzero()[:, 0].tolist() == [7]
    found = instruction_mask(ids[:, :4], ids[:, :4] == IMAGE, [[9], [9, 4]], [[1], [2, 1]])
    assert found[0].nonzero()[:, 0].tolist() == [3]
