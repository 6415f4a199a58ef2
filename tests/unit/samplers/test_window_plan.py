"""Pictures so thin that no cell of the local map shows them: what is left of them, here and in the release."""

import pytest
import torch

from data_pipeline.anyres import hf_grid_pinpoints, plan_tiles, valid_cells, visual_token_count
from data_pipeline.config import ImageGeometry
from megatron_focus.config.schema import VisionSamplerConfig
from megatron_focus.release.image_geometry import image_grid
from megatron_focus.release.vision_sampling import VisionSampler
from megatron_focus.release.vision_sampling import baseline_tokens as baseline_of_the_release
from megatron_focus.samplers.vision_guided import VisionGuidedSampler, baseline_tokens
from megatron_focus.samplers.window_plan import plan_windows
from tests.tiny import GEOMETRY

TALL, WIDE = (400, 3), (3, 400)
SIZES = [TALL, (100, 80), WIDE, TALL]
HIDDEN = 12


def features_and_newline() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tiles = sum(1 + p.rows * p.cols for p in (plan_tiles(h, w, GEOMETRY) for h, w in SIZES))
    features = torch.randn(tiles, GEOMETRY.cells_per_side**2, HIDDEN, generator=generator)
    return features, torch.randn(HIDDEN, generator=generator)


def grids_of_the_release() -> list:
    pinpoints, g = hf_grid_pinpoints(GEOMETRY), GEOMETRY.cells_per_side
    return [image_grid(size, pinpoints, GEOMETRY.tile_size, g) for size in SIZES]


@pytest.mark.parametrize("geometry", [GEOMETRY, ImageGeometry()], ids=["tiny", "published"])
@pytest.mark.parametrize("size", [TALL, WIDE, (2000, 20), (20, 2000)], ids=str)
def test_a_crop_without_width_keeps_its_newlines(geometry, size):
    crop = valid_cells(*size, plan_tiles(*size, geometry), geometry)
    assert crop.height * crop.width == 0
    plan = plan_windows(torch.tensor([size]), geometry, 1, [], "keep")
    assert len(plan.source) == visual_token_count(*size, geometry)
    cells = geometry.cells_per_side**2
    assert plan.newline.tolist() == [False] * cells + [True] * crop.height


def test_without_a_sampler_the_tokens_are_the_releases():
    features, newline = features_and_newline()
    ours = baseline_tokens(features, newline, plan_windows(torch.tensor(SIZES), GEOMETRY, 1, [], "keep"))
    theirs = baseline_of_the_release(features, newline, grids_of_the_release())
    assert ours.lengths.tolist() == theirs.counts.tolist()
    assert torch.equal(ours.newline, theirs.is_newline) and torch.equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize("global_view", ["compress", "keep"])
def test_with_the_sampler_the_tokens_are_the_releases(global_view):
    features, newline = features_and_newline()
    config = VisionSamplerConfig(window=2, scales=["1x1", "2x2"], global_view=global_view)
    ours = VisionGuidedSampler(config, GEOMETRY.cells_per_side, 1.0, torch.float32).eval()
    names = ("window", "scales", "score_pooling", "score_scale", "center_scores", "gate", "global_view")
    settings = {name: getattr(config, name) for name in names}
    theirs = VisionSampler(settings, GEOMETRY.cells_per_side).eval()
    theirs.load_state_dict(ours.state_dict())
    plan = plan_windows(torch.tensor(SIZES), GEOMETRY, config.window, config.scales, global_view)
    result, expected = ours(features, newline, plan), theirs(features, newline, grids_of_the_release())
    assert set(plan.image[plan.newline].tolist()) == {1}  # thin pictures have no windows, so no rows of windows
    assert result.lengths.tolist() == expected.counts.tolist()
    assert torch.equal(result.newline, expected.is_newline) and torch.equal(result.tokens, expected.tokens)


@pytest.mark.parametrize("size", [TALL, WIDE], ids=str)
def test_a_picture_that_would_leave_nothing_is_refused(size):
    with pytest.raises(ValueError, match="image 1 of the row leaves no visual token"):
        plan_windows(torch.tensor([(100, 80), size]), GEOMETRY, 2, ["1x1", "2x2"], "drop")
