"""Tensor-parallel ranks take the same tokens, whatever the rounding of their scores: else a job hangs."""

import pytest
import torch

from megatron_focus.models import focus_llava, token_selection
from megatron_focus.samplers import heuristic
from tests.distributed.harness import run_ranks
from tests.distributed.workers import configure, start
from tests.functional.single import row_inputs
from tests.tiny import make_row, tiny_model

IMAGES = [[(100, 80)], [(60, 200), (57, 57)]]
TP2 = {"tensor_model_parallel_size": 2}


def disturbed(scores):
    """Scores of the same shape in another order."""
    return scores.max() - scores


def taken(config, what):
    """(image, visual tokens of each image, positions that stay, losses) of a row; rank 1's scores are others."""
    _, parts = start(config)
    chunk = parts.chunks[0].module
    if torch.distributed.get_rank() == 1 and what == "vision-guided":
        chunk.vision_sampler.selector.weight.data.neg_()
    elif torch.distributed.get_rank() == 1:
        module, name = {"text-guided": (token_selection, "importance"), "heuristic": (heuristic, "cell_scores")}[what]
        scores = getattr(module, name)
        setattr(module, name, lambda *args: disturbed(scores(*args)))
    inputs = row_inputs(config.model, make_row(3, IMAGES), training=False)
    result: focus_llava.StageOutput = chunk(inputs)
    visual = result.visual
    return visual.image.tolist(), visual.lengths.tolist(), result.layout.position.tolist(), result.output.tolist()


@pytest.mark.parametrize(
    ("what", "parallel"),
    [
        ("vision-guided", TP2),
        ("heuristic", TP2),
        ("text-guided", TP2),
        ("text-guided", TP2 | {"sequence_parallel": True}),
    ],
)
def test_ranks_with_other_scores_take_the_same_tokens(what, parallel):
    model = tiny_model()
    if what == "heuristic":
        sampler = model.vision_sampler
        sampler.method, sampler.heuristic_keep, sampler.scales = "heuristic", 0.4, ["1x1"]
    config = configure(model, parallel)
    first, second = run_ranks(taken, 2, config, what, timeout=60.0)
    assert len(first[2]) < sum(first[1])  # tokens were dropped
    assert first[:3] == second[:3]
    assert first[3] == pytest.approx(second[3])
