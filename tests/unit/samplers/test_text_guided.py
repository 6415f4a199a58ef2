"""The text-guided sampler against the float64 reference written from Eq. 6-9."""

import pytest
import torch

from megatron_focus.config.schema import TextSamplerConfig
from megatron_focus.release.text_sampling import important_enough
from megatron_focus.samplers import text_guided
from megatron_focus.samplers.draws import draw
from megatron_focus.samplers.text_guided import importance, select_by_share
from tests.reference.text_guided import text_guided_reference
from tests.tiny import chat_row


def padded(parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    block = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    lengths = torch.tensor([len(p) for p in parts])
    return block, torch.arange(block.shape[1]) < lengths[:, None]


@pytest.mark.parametrize("gamma", [0.3, 0.6, 0.85, 0.999, 1.0, 1.5])
def test_equals_the_reference(gamma, monkeypatch):
    monkeypatch.setattr(text_guided, "WORKSPACE_BYTES", 20_000)  # several chunks of queries
    torch.manual_seed(1)
    sizes = [(7, 30, 2), (1, 11, 1), (12, 45, 3)]  # queries, keys, images
    queries = [torch.randn(t, 8, 16) for t, _, _ in sizes]
    keys = [torch.randn(v, 2, 16) for _, v, _ in sizes]
    images = [torch.randint(0, i, (v,)).sort().values for _, v, i in sizes]
    q, q_valid = padded(queries)
    k, k_valid = padded(keys)
    image = torch.nn.utils.rnn.pad_sequence(images, batch_first=True, padding_value=-1)
    scores = importance(q, k, q_valid, k_valid)
    keep = select_by_share(scores, k_valid, image, torch.full((3,), gamma))
    for i in range(3):
        expected = text_guided_reference(queries[i], keys[i], images[i], gamma)
        count = len(keys[i])
        # float32 softmax against float64: 3e-8 seen on scores of 0.1.
        torch.testing.assert_close(scores[i, :count].double(), expected["scores"], rtol=1e-5, atol=1e-7)
        assert keep[i].nonzero().squeeze(1).tolist() == expected["keep"].tolist()


def test_equal_scores_keep_the_earlier_tokens():
    scores = torch.full((1, 10), 0.1)
    valid = torch.ones(1, 10, dtype=torch.bool)
    keep = select_by_share(scores, valid, torch.zeros(1, 10, dtype=torch.long), torch.tensor([0.45]))
    assert keep[0].nonzero().squeeze(1).tolist() == [0, 1, 2, 3, 4]


def test_gamma_is_as_precise_as_in_a_release():
    """14 of 20 equal scores reach a share of 0.7 and do not exceed it, from the draw to the choice, on both sides."""
    config = TextSamplerConfig(mode="train", gamma=0.7)
    gamma = draw(config, chat_row(0, [([(56, 56)], 1)]), seed=0, step=0, training=True).gamma
    scores, valid, image = torch.full((1, 20), 0.05), torch.ones(1, 20, dtype=torch.bool), torch.zeros(1, 20).long()
    assert select_by_share(scores, valid, image, gamma).sum() == 15
    assert important_enough(scores[0], image[0], config.gamma).sum() == 15


def test_every_image_keeps_its_best_token():
    scores = torch.tensor([[0.5, 0.4, 0.01, 0.03, 0.02, 0.04]])
    image = torch.tensor([[0, 0, 1, 1, 2, 2]])
    keep = select_by_share(scores, torch.ones(1, 6, dtype=torch.bool), image, torch.tensor([0.4]))
    assert keep[0].nonzero().squeeze(1).tolist() == [0, 3, 5]


def test_heads_on_several_ranks_give_the_same_scores():
    """Splitting the heads and taking the maximum of the parts is what tensor parallelism does."""
    torch.manual_seed(2)
    q, k = torch.randn(1, 5, 4, 8), torch.randn(1, 9, 2, 8)
    q_valid, k_valid = torch.ones(1, 5, dtype=torch.bool), torch.ones(1, 9, dtype=torch.bool)
    whole = importance(q, k, q_valid, k_valid)
    other: list[torch.Tensor] = []
    importance(q[:, :, 2:], k[:, :, 1:], q_valid, k_valid, lambda block: other.append(block) or block)
    halves = importance(q[:, :, :2], k[:, :, :1], q_valid, k_valid, lambda b: torch.maximum(b, other[0]))
    # Another order of the matrix product changes the last bit: 6e-8 seen.
    torch.testing.assert_close(halves, whole, rtol=1e-5, atol=1e-7)
