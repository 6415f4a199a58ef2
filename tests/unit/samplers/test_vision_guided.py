"""The vision-guided sampler against the float64 reference written from Eq. 1-5 and 10."""

import math

import pytest
import torch

from data_pipeline.anyres import plan_tiles, valid_cells, visual_token_count
from data_pipeline.config import ImageGeometry
from megatron_focus.config.schema import VisionSamplerConfig
from megatron_focus.samplers.balance import entropy_within_pictures
from megatron_focus.samplers.vision_guided import VisionGuidedSampler, baseline_tokens, first_argmax
from megatron_focus.samplers.window_plan import plan_windows
from megatron_focus.training.balance_loss import BatchBalance
from tests.reference.vision_guided import vision_guided_reference


class FakeProcessGroup:
    """Megatron's group of one rank."""

    def __init__(self, size: int):
        self._size = size

    def size(self) -> int:
        return self._size


SIZES = [(300, 400), (57, 333), (512, 511), (100, 41)]  # several crops, rows and columns
HIDDEN = 12


def geometry(cells: int) -> ImageGeometry:
    side = cells * 14
    pins = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]
    return ImageGeometry(tile_size=side, patch_size=14, grid_pinpoints=pins)


def local_map(features: torch.Tensor, rows: int, cols: int, g: int) -> torch.Tensor:
    return features.view(rows, cols, g, g, -1).permute(0, 2, 1, 3, 4).reshape(rows * g, cols * g, -1)


def reference(features: torch.Tensor, image_geometry: ImageGeometry, sampler: VisionGuidedSampler, newline, training):
    """The reference, image by image."""
    g, results, tile = image_geometry.cells_per_side, [], 0
    config = sampler.config
    for height, width in SIZES:
        plan = plan_tiles(height, width, image_geometry)
        crop = valid_cells(height, width, plan, image_geometry)
        count = plan.rows * plan.cols
        results.append(
            vision_guided_reference(
                features[tile],
                local_map(features[tile + 1 : tile + 1 + count], plan.rows, plan.cols, g),
                (crop.top, crop.bottom, crop.left, crop.right),
                sampler.selector.weight,
                sampler.selector.bias,
                config.window,
                config.scales,
                config.score_pooling,
                config.global_view,
                config.gate,
                training,
                newline,
                config.score_scale,
                config.center_scores,
            )
        )
        tile += 1 + count
    return results


def build(cells: int, **settings) -> tuple[VisionGuidedSampler, torch.Tensor, torch.Tensor, ImageGeometry]:
    torch.manual_seed(0)
    image_geometry = geometry(cells)
    sampler = VisionGuidedSampler(VisionSamplerConfig(**settings), cells, 1.0, torch.float32)
    torch.nn.init.normal_(sampler.selector.bias)
    tiles = sum(1 + p.rows * p.cols for p in (plan_tiles(h, w, image_geometry) for h, w in SIZES))
    features = torch.randn(tiles, cells**2, HIDDEN)
    return sampler, features, torch.randn(HIDDEN), image_geometry


SEVEN = ["1x1", "2x1", "1x2", "2x2", "4x2", "2x4", "4x4"]
CASES = [
    (8, {"window": 4}),
    (8, {"window": 4, "scales": SEVEN}),
    (8, {"window": 8}),
    (12, {"window": 12}),
    (4, {"window": 2, "scales": ["1x1", "2x2"]}),
    (4, {"window": 1, "scales": ["1x1", "discard"]}),
    (8, {"window": 4, "score_pooling": "mean"}),
    (8, {"window": 4, "global_view": "keep"}),
    (8, {"window": 4, "global_view": "drop"}),
    (8, {"window": 4, "gate": "ste"}),
    (8, {"window": 4, "gate": "switch"}),
    (8, {"window": 4, "balance_weights": [1.1, 1.0, 0.9]}),
    (8, {"window": 4, "score_scale": 1.0}),
    (8, {"window": 4, "center_scores": True}),
    (8, {"window": 4, "center_scores": True, "score_scale": 0.5, "score_pooling": "mean", "global_view": "drop"}),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("cells", "settings"), CASES, ids=[str(c[1]) for c in CASES])
def test_equals_the_reference_forward_and_backward(cells, settings, training):
    sampler, features, newline, image_geometry = build(cells, **settings, balance_scope="row")
    sampler.train(training)
    features.requires_grad_(), newline.requires_grad_()
    config = sampler.config
    plan = plan_windows(torch.tensor(SIZES), image_geometry, config.window, config.scales, config.global_view)
    result = sampler(features, newline, plan)
    parameters = [features, newline, sampler.selector.weight, sampler.selector.bias]
    expected = reference(features, image_geometry, sampler, newline, training)
    tokens = torch.cat([r["tokens"] for r in expected])

    assert result.lengths.tolist() == [len(r["tokens"]) for r in expected]
    assert result.newline.tolist() == [flag for r in expected for flag in r["is_newline"]]
    chosen = [s for r in expected for s in r["scale"] if s is not None]
    assert result.scale_counts.tolist() == [chosen.count(s) for s in range(len(config.scales))]
    assert plan.num_windows == sum(r["num_windows"] for r in expected)
    # float32 against float64: at most 1.2e-6 was seen on tokens of size 3.
    torch.testing.assert_close(result.tokens.double(), tokens, rtol=1e-5, atol=1e-5)

    windows = torch.tensor([r["num_windows"] for r in expected], dtype=torch.float64)
    share = torch.stack([r["f"] for r in expected]) * windows[:, None] / windows.sum()
    probability = torch.stack([r["P"] for r in expected]) * windows[:, None] / windows.sum()
    weights = torch.tensor(config.balance_weights or [1.0] * len(config.scales), dtype=torch.float64)
    balance = (weights * share.sum(0) * probability.sum(0)).sum()
    torch.testing.assert_close(result.balance.double(), balance, rtol=1e-5, atol=1e-6)

    direction = torch.randn_like(tokens)
    got = torch.autograd.grad(
        (result.tokens * direction).sum() + result.balance, parameters, allow_unused=True, materialize_grads=True
    )
    want = torch.autograd.grad(
        (tokens * direction).sum() + balance, parameters, allow_unused=True, materialize_grads=True
    )
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w.double(), rtol=1e-4, atol=1e-4)  # up to 2e-5 seen, sums of 1e3 terms


@pytest.mark.parametrize("center_scores", [False, True])
def test_sums_over_rows_give_the_balance_gradient_of_the_batch(center_scores):
    """Gradient by the selector of alpha * sum w_i f_i P_i over two rows: autograd's in float64, features fixed."""
    alpha, weights = 0.3, [1.2, 1.0, 0.8]
    settings = {"balance_loss_coeff": alpha, "balance_weights": weights, "center_scores": center_scores}
    sampler, features, newline, image_geometry = build(8, **settings)
    config, balance = sampler.config, BatchBalance(sampler.config)
    tiles = [1 + plan.rows * plan.cols for plan in (plan_tiles(h, w, image_geometry) for h, w in SIZES)]
    rows = [(SIZES[:3], features[: sum(tiles[:3])]), (SIZES[3:], features[sum(tiles[:3]) :])]
    for sizes, of_row in rows:
        plan = plan_windows(torch.tensor(sizes), image_geometry, 4, config.scales, "compress")
        balance.add(sampler(of_row.requires_grad_(), newline, plan))
    for parameter in sampler.selector.parameters():
        parameter.main_grad = torch.zeros_like(parameter)
    balance.add_gradient(sampler.selector, FakeProcessGroup(size=1))

    results = reference(features.detach(), image_geometry, sampler, newline, True)
    windows = sum(r["num_windows"] for r in results)
    share, probability = (sum(r[name] * r["num_windows"] for r in results) / windows for name in ("f", "P"))
    loss = alpha * (torch.tensor(weights, dtype=torch.float64) * share * probability).sum()
    wanted = torch.autograd.grad(loss, list(sampler.selector.parameters()))
    for parameter, want in zip(sampler.selector.parameters(), wanted, strict=True):
        deviation = (parameter.main_grad.double() - want.double()).norm() / want.double().norm()
        assert deviation < 3e-6  # 1.2e-6 was seen


def test_entropy_within_pictures():
    chosen = torch.tensor([[1, 0], [0, 1], [1, 0], [1, 0], [0, 0], [0, 0], [0, 1], [0, 1], [0, 1], [1, 0]])
    # Tiles of two windows: the first picture has three (one window does not count), the second two.
    entropy = entropy_within_pictures(chosen, torch.tensor([0, 0, 0, 3, 3]))
    first = [1 / 4, 3 / 4]
    second = [1 / 4, 3 / 4]
    assert entropy.item() == pytest.approx(-4 * sum(p * math.log(p) for p in first + second))
    assert entropy_within_pictures(chosen[6:8], torch.tensor([0])).item() == 0


def test_without_a_sampler_the_tokens_are_the_baselines():
    _, features, newline, image_geometry = build(8)
    plan = plan_windows(torch.tensor(SIZES), image_geometry, 1, [], "keep")
    result = baseline_tokens(features, newline, plan)
    assert result.lengths.tolist() == [visual_token_count(h, w, image_geometry) for h, w in SIZES]
    first = features[0]  # the global view of the first image comes first, in cell order
    assert torch.equal(result.tokens[: len(first)], first)


def test_uniform_routing_leaves_what_the_method_page_predicts():
    """Windows spread evenly over the three scales leave 43.4-43.5 % of the baseline (method.md section 2)."""
    image_geometry = ImageGeometry()
    sizes = torch.tensor([[672, 672], [480, 640], [336, 336]])
    plan = plan_windows(sizes, image_geometry, 4, ["1x1", "2x2", "4x4"], "compress")
    newlines = int(plan.newline.sum())
    per_scale = [int((plan.scale == s).sum()) for s in range(3)]
    expected = sum(per_scale) / 3 + newlines
    baseline = sum(visual_token_count(h, w, image_geometry) for h, w in sizes.tolist())
    assert 0.43 < expected / baseline < 0.445


def test_ties_go_to_the_finest_scale():
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0], [3.0, 1.0, 3.0]])
    assert first_argmax(logits).tolist() == [0, 1, 0]


def test_a_row_without_images_has_an_empty_plan():
    plan = plan_windows(torch.zeros(0, 2), geometry(8), 4, ["1x1", "2x2", "4x4"], "compress")
    assert (len(plan.source), plan.num_windows, plan.num_images) == (0, 0, 0)
