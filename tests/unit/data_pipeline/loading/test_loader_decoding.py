import dataclasses

import pytest
import torch

from data_pipeline.errors import SampleError
from tests.unit.data_pipeline.loading.loader_steps import (
    batches,
    ids,
    steps,
)


def test_another_decoder_is_said(make):
    state = dataclasses.replace(steps(make(), 1)[0][1], decoder="dali on cuda")
    with pytest.warns(UserWarning, match="images were decoded with dali on cuda so far, with cpu from now on"):
        make(state=state)


@pytest.mark.parametrize("workers", [0, 2])
def test_dali_gives_the_same_rows(make, workers):
    pytest.importorskip("nvidia.dali")
    expected, got = steps(make(), 8), steps(make(decoder="dali", num_workers=workers), 8)
    for (one, state), (other, other_state) in zip(expected, got, strict=True):
        assert dataclasses.replace(state, decoder="dali on cpu") == other_state
        for row, other_row in zip(one.rows, other.rows, strict=True):
            tensors, others = row.tensors(), other_row.tensors()
            tiles, other_tiles = tensors.pop("tiles"), others.pop("tiles")
            assert all(torch.equal(tensors[name], others[name]) for name in tensors)
            # DALI resizes another way: see decoding/test_drift.py.
            assert (tiles.float() - other_tiles.float()).abs().mean() < 2


def test_dali_leaves_out_what_cannot_be_decoded(make, undecodable):
    pytest.importorskip("nvidia.dali")
    expected = batches(make(path=str(undecodable), on_bad_sample="skip"), 6)
    got = batches(make(path=str(undecodable), on_bad_sample="skip", decoder="dali", num_workers=1), 6)
    for one, other in zip(expected, got, strict=True):
        assert ids(one) == ids(other) and one.report.skipped_by_reason == other.report.skipped_by_reason
    with pytest.raises(SampleError, match="sample 's9' of llava: image 0 of s9: not a readable"):
        steps(make(path=str(undecodable), decoder="dali"), 4)
