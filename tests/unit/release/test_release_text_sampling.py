"""The release's text-guided sampler against the float64 reference of Eq. 6-9, and the instruction it finds in ids."""

import pytest
import torch

from data_pipeline.conversation import Turn, instruction_markers, render
from megatron_focus.release.text_sampling import importance, important_enough, instruction_mask
from tests.reference.text_guided import text_guided_reference
from tests.unit.release.tiny_models import IMAGE, PAD, TOKENIZER


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
]


@pytest.mark.parametrize("template", ["llama3", "plain"])
def test_instruction_is_that_of_the_training_data(template):
    """Found in ids alone, with each placeholder repeated and rows padded on the left."""
    start, end = instruction_markers(TOKENIZER, template)
    chosen = CONVERSATIONS if template == "llama3" else CONVERSATIONS[:1]
    rows, expected = [], []
    for turns in chosen:
        encoded = render(turns, TOKENIZER, template)
        repeats = [3 if token == IMAGE else 1 for token in encoded.tokens]
        rows.append(torch.tensor(encoded.tokens).repeat_interleave(torch.tensor(repeats)))
        expected.append(torch.tensor(encoded.instruction).repeat_interleave(torch.tensor(repeats)))
    longest = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=PAD) for row in rows])
    want = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in expected])
    assert torch.equal(instruction_mask(ids, ids == IMAGE, start, end), want)
    assert bool(want.any()) == (template == "llama3")


def test_instruction_of_a_turn_that_has_not_ended():
    ids = torch.tensor([[7, 9, 9, 8, IMAGE, 5, 6]])
    assert instruction_mask(ids, ids == IMAGE, [9, 9], [1]).tolist() == [[False] * 5 + [True] * 2]
