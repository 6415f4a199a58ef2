"""Taking steps from a loader, and comparing them."""

import torch

from data_pipeline.anyres import visual_token_count

BATCH = 7
BUDGET = 1500


def steps(loader, count):
    """(batch, state after it) of some steps; a model keeps 40 % of the visual tokens, a little more in every step."""
    result = []
    for _ in range(count):
        batch = loader.next_step()
        # From the place alone, so that every rank and a resumed run measure the same.
        kept = 400 + (loader.state.epoch * 24 + loader.state.position) % 50
        result.append((batch, loader.step_done(kept, 1000)))
    return result


def batches(loader, count):
    return [batch for batch, _ in steps(loader, count)]


def same_row(one, other):
    pairs = zip(one.tensors().values(), other.tensors().values(), strict=True)
    return one.sample_ids == other.sample_ids and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def same_steps(ones, others):
    assert len(ones) == len(others)
    for (one, state), (other, other_state) in zip(ones, others, strict=True):
        assert state == other_state and one.report == other.report
        assert len(one.rows) == len(other.rows) and all(map(same_row, one.rows, other.rows))
    return True


def ids(batch):
    return [id for row in batch.rows for id in row.sample_ids if id != "(filler)"]


def worst_case(row, geometry):
    visual = sum(visual_token_count(h, w, geometry) for h, w in row.image_sizes.tolist())
    return len(row.tokens) - len(row.grids) + visual
