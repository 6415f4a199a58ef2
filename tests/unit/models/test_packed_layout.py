"""The layout of a row: selection, padding, and its journey inside the hidden states."""

import pytest
import torch

from megatron_focus.models.packed_layout import NEWLINE, PAD, TEXT, VISUAL, PackedLayout
from megatron_focus.parallel.pipeline_metadata import append_layout, split_layout


def layout() -> PackedLayout:
    return PackedLayout(
        position=torch.tensor([0, 1, 2, 3, 4, 0, 1], dtype=torch.int32),
        kind=torch.tensor([TEXT, VISUAL, VISUAL, NEWLINE, TEXT, TEXT, TEXT], dtype=torch.int32),
        image=torch.tensor([-1, 0, 0, 0, -1, -1, -1], dtype=torch.int32),
        label=torch.tensor([-100, -100, -100, 7, 2**30, 9, -100], dtype=torch.int32),
        cu_seqlens=torch.tensor([0, 5, 7], dtype=torch.int32),
        drop_layer=torch.tensor([3, -1], dtype=torch.int32),
        gamma=torch.tensor([0.85, 1.0], dtype=torch.float64),
    )


def same(a: PackedLayout, b: PackedLayout) -> bool:
    return torch.equal(a.to_ints(), b.to_ints())


def test_selected_tokens_keep_their_positions_and_samples():
    chosen = layout().select(torch.tensor([0, 2, 3, 4, 5, 6]))
    assert chosen.position.tolist() == [0, 2, 3, 4, 0, 1]
    assert chosen.seqlens == [4, 2]
    assert chosen.label.tolist() == [-100, -100, 7, 2**30, 9, -100]


def test_padding_belongs_to_the_end_of_the_last_sample():
    padded = layout().padded(4)
    assert len(padded) == 8
    assert padded.seqlens == [5, 3]
    assert padded.kind[-1] == PAD
    assert same(padded.select(torch.arange(7)), layout())
    assert layout().padded(7) is not None and len(layout().padded(7)) == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [8, 64])
def test_the_layout_survives_the_hidden_states_bit_for_bit(dtype, hidden):
    states = torch.randn(7, 1, hidden, dtype=dtype, requires_grad=True)
    sent = append_layout(states, layout())
    received = sent.detach().clone().requires_grad_()
    back, read = split_layout(received)
    assert torch.equal(back, states) and same(read, layout())
    back.float().pow(2).sum().backward()
    assert received.grad[:7].abs().sum() > 0
    assert received.grad[7:].abs().sum() == 0  # metadata has no gradient
    (grad,) = torch.autograd.grad(sent, states, received.grad)
    assert torch.equal(grad, received.grad[:7])
