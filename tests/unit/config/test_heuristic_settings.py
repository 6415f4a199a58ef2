"""What the heuristic sampler may be set to."""

import pytest

from megatron_focus.config.loading import load_config
from megatron_focus.config.validation import validate

KEY = "model.vision_sampler."
HEURISTIC = [f"{KEY}method=heuristic", f"{KEY}heuristic_keep=0.4", f"{KEY}scales=[1x1]"]


def test_a_heuristic_sampler_is_valid():
    validate(load_config(None, HEURISTIC), 8)
    validate(load_config(None, [*HEURISTIC, f"{KEY}heuristic_keep=1"]), 8)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([f"{KEY}method=random"], ["method='random'", "learned, heuristic"]),
        ([f"{KEY}heuristic_keep=0.4"], ["heuristic_keep=0.4", "method=heuristic"]),
        ([*HEURISTIC, f"{KEY}heuristic_keep=0"], ["heuristic_keep", "it is 0.0"]),
        ([*HEURISTIC, f"{KEY}heuristic_keep=1.5"], ["at most 1", "it is 1.5"]),
        ([*HEURISTIC, f"{KEY}heuristic_keep=null"], ["needs", "it is None"]),
        ([*HEURISTIC, f"{KEY}scales=[1x1,2x2]"], ["single cells", "['1x1', '2x2']"]),
        ([*HEURISTIC, f"{KEY}center_scores=true"], ["center_scores=True", "method=learned"]),
        ([*HEURISTIC, f"{KEY}gate=ste"], ["gate=ste", "method=learned"]),
        ([*HEURISTIC, f"{KEY}balance_weights=[1.0]"], ["balance_weights=[1.0]", "method=learned"]),
    ],
)
def test_refusals(overrides, parts):
    with pytest.raises(ValueError) as error:
        validate(load_config(None, overrides), 8)
    for part in parts:
        assert part in str(error.value)
