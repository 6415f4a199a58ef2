"""The heuristic sampler against the float64 reference written from the supplement's equations."""

import math

import pytest
import torch

from data_pipeline.anyres import plan_tiles, valid_cells
from data_pipeline.config import ImageGeometry
from megatron_focus.config.schema import VisionSamplerConfig
from megatron_focus.samplers.heuristic import HeuristicSampler, top_share
from megatron_focus.samplers.vision_guided import baseline_tokens
from megatron_focus.samplers.window_plan import plan_windows
from tests.reference.heuristic import heuristic_reference

SIZES = [(300, 400), (57, 333), (512, 511), (100, 41)]  # several crops, rows and columns
HIDDEN, CELLS = 12, 8
SIDE = CELLS * 14
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]
GEOMETRY = ImageGeometry(tile_size=SIDE, patch_size=14, grid_pinpoints=PINPOINTS)


def settings(**changes) -> VisionSamplerConfig:
    return VisionSamplerConfig(**{"method": "heuristic", "scales": ["1x1"], "heuristic_keep": 0.4} | changes)


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tiles = sum(1 + p.rows * p.cols for p in (plan_tiles(h, w, GEOMETRY) for h, w in SIZES))
    features = torch.randn(tiles, CELLS**2, HIDDEN, generator=generator, requires_grad=True)
    return features, torch.randn(HIDDEN, generator=generator, requires_grad=True)


def sample(config: VisionSamplerConfig, features: torch.Tensor, newline: torch.Tensor, sizes=SIZES):
    plan = plan_windows(torch.tensor(sizes), GEOMETRY, config.window, config.scales, config.global_view)
    return HeuristicSampler(config)(features, newline, plan)


def reference(config: VisionSamplerConfig, features: torch.Tensor, newline: torch.Tensor) -> list[dict]:
    """The reference, image by image."""
    results, tile = [], 0
    for height, width in SIZES:
        plan = plan_tiles(height, width, GEOMETRY)
        crop = valid_cells(height, width, plan, GEOMETRY)
        end = tile + 1 + plan.rows * plan.cols
        local = features[tile + 1 : end].view(plan.rows, plan.cols, CELLS, CELLS, -1)
        local = local.permute(0, 2, 1, 3, 4).reshape(plan.rows * CELLS, plan.cols * CELLS, -1)
        bounds = (crop.top, crop.bottom, crop.left, crop.right)
        keep, view = config.heuristic_keep, config.global_view
        results.append(heuristic_reference(features[tile], local, bounds, config.window, keep, view, newline))
        tile = end
    return results


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heuristic_keep": 0.8},
        {"heuristic_keep": 1.0},
        {"window": 1},
        {"window": 8, "heuristic_keep": 0.6},
        {"global_view": "keep"},
        {"global_view": "drop", "heuristic_keep": 0.123},
        {"heuristic_keep": 1e-6},
    ],
    ids=str,
)
def test_equals_the_reference_forward_and_backward(changes):
    config = settings(**changes)
    features, newline = inputs()
    result, expected = sample(config, features, newline), reference(config, features, newline)
    # Far more than the float32 scores' error (2.3e-7 was seen on scores of up to 1.8), so both sides must agree.
    assert min(r["margin"] for r in expected) > 1e-5
    tokens = torch.cat([r["tokens"] for r in expected])
    assert result.lengths.tolist() == [len(r["tokens"]) for r in expected]
    assert result.newline.tolist() == [flag for r in expected for flag in r["is_newline"]]
    assert torch.equal(result.tokens.double(), tokens)  # cells are copied, not computed
    assert result.balance == 0 and not result.balance.requires_grad

    direction = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad((result.tokens * direction).sum(), [features, newline])
    want = torch.autograd.grad((tokens * direction).sum(), [features, newline])
    assert torch.equal(got[0], want[0])  # only cells that stay have one, and each of them a single term
    torch.testing.assert_close(got[1], want[1].float(), rtol=1e-5, atol=1e-5)  # a sum over up to 60 newlines


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_each_image_keeps_its_share_rounded_up(share):
    config = settings(heuristic_keep=share)
    features, newline = inputs()
    result, expected = sample(config, features, newline), reference(config, features, newline)
    cells = torch.bincount(result.image[~result.newline], minlength=len(SIZES))
    assert cells.tolist() == [math.ceil(round(share * r["candidates"], 6)) for r in expected]
    whole = sample(settings(heuristic_keep=1.0), features, newline)
    assert share <= cells.sum() / (~whole.newline).sum() < share + 0.01


def test_images_are_sampled_on_their_own():
    config = settings()
    features, newline = inputs()
    together, tile = sample(config, features, newline), 0
    for tokens, size in zip(together.tokens.split(together.lengths.tolist()), SIZES, strict=True):
        plan = plan_tiles(*size, GEOMETRY)
        end = tile + 1 + plan.rows * plan.cols
        alone = sample(config, features[tile:end], newline, [size])
        assert torch.equal(alone.tokens, tokens)
        tile = end


def test_keeping_all_with_window_1_is_llava_next():
    """The same tokens in the same order, newlines included; a larger window reads them in its own order."""
    features, newline = inputs()
    stock = baseline_tokens(features, newline, plan_windows(torch.tensor(SIZES), GEOMETRY, 1, [], "keep"))
    everything = sample(settings(window=1, heuristic_keep=1.0), features, newline)
    assert torch.equal(everything.tokens, stock.tokens)
    assert torch.equal(everything.newline, stock.newline)
    windows = sample(settings(window=4, heuristic_keep=1.0), features, newline)

    def cells(visual) -> list:
        return sorted(visual.tokens[~visual.newline].tolist())

    assert cells(windows) == cells(stock)
    assert int(windows.newline.sum()) < int(stock.newline.sum())


def test_ties_go_to_the_cell_that_is_read_first():
    score = torch.tensor([1.0, 3.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    image = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    assert sorted(top_share(score, image, 2, 0.5).tolist()) == [0, 1, 4, 5]


def test_a_share_of_a_whole_number_of_cells_is_that_number():
    """0.28 * 25 is 7.000000000000001 in floating point."""
    for share, cells, kept in ((0.28, 25, 7), (0.6, 5, 3), (0.1, 30, 3), (0.8, 2340, 1872)):
        assert len(top_share(torch.rand(cells), torch.zeros(cells, dtype=torch.int64), 1, share)) == kept


def test_a_row_without_images():
    config = settings()
    plan = plan_windows(torch.zeros(0, 2), GEOMETRY, 4, ["1x1"], "compress")
    result = HeuristicSampler(config)(torch.zeros(0, CELLS**2, HIDDEN), torch.zeros(HIDDEN), plan)
    assert (len(result.tokens), result.lengths.tolist(), result.scale_counts.tolist()) == (0, [], [0])
