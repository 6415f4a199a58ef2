"""A range of a flattened tensor is a few boxes of it."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_focus.checkpoint.optimizer_shards import boxes


@given(st.data())
def test_boxes_are_the_range_in_order(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    start = data.draw(st.integers(0, math.prod(shape)))
    stop = data.draw(st.integers(start, math.prod(shape)))
    numbers = torch.arange(math.prod(shape)).view(shape)
    found = list(boxes(shape, start, stop))
    parts = [numbers[tuple(slice(o, o + s) for o, s in zip(*box, strict=True))] for box in found]
    assert [number for part in parts for number in part.flatten().tolist()] == list(range(start, stop))
    assert len(found) <= 2 * len(shape) - 1


def test_boxes_of_a_scalar():
    assert list(boxes((), 0, 1)) == [((), ())]
    assert list(boxes((), 1, 1)) == []
