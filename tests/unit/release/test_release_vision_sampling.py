"""The release's vision-guided sampler against the float64 reference of Eq. 1-5 and 10."""

import pytest
import torch

from megatron_focus.release.image_geometry import image_grid
from megatron_focus.release.vision_sampling import GLOBAL_VIEW, LOCAL_MAP, VisionSampler
from tests.reference.vision_guided import vision_guided_reference

HIDDEN = 12
SIZES = [(300, 400), (57, 333), (512, 511), (100, 41), (7, 300)]
SEVEN = ["1x1", "2x1", "1x2", "2x2", "4x2", "2x4", "4x4"]

CASES = [
    # cells, window, scales, score pooling, global view, and score scale and centring where they are not the default
    (4, 4, ["1x1", "2x2", "4x4"], "max", "compress"),
    (4, 4, SEVEN, "mean", "keep"),
    (4, 2, ["1x1", "2x2"], "max", "drop"),
    (8, 4, SEVEN, "max", "compress"),
    (8, 8, ["1x1", "2x2", "4x4"], "mean", "compress"),
    (4, 1, ["1x1", "discard"], "max", "compress"),
    (8, 4, ["1x1", "2x2", "4x4"], "max", "compress", 1.0, False),
    (8, 4, ["1x1", "2x2", "4x4"], "max", "compress", None, True),
    (4, 4, SEVEN, "mean", "keep", 0.5, True),
]


def grids_of(cells: int) -> list:
    side = cells * 14
    pinpoints = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]
    return [image_grid(size, pinpoints, side, cells) for size in SIZES]


def settings_of(case: tuple) -> dict:
    names = ("window", "scales", "score_pooling", "global_view", "score_scale", "center_scores")
    return dict(zip(names, (*case[1:], None, False)[:6] if len(case) == 5 else case[1:], strict=True))


def build(case: tuple, gate: str) -> tuple:
    cells = case[0]
    generator = torch.Generator().manual_seed(1)
    sampler = VisionSampler(settings_of(case) | {"gate": gate}, cells)
    with torch.no_grad():
        sampler.selector.weight.normal_(generator=generator)
        sampler.selector.bias.normal_(generator=generator)
    grids = grids_of(cells)
    tiles = sum(grid.num_tiles for grid in grids)
    features = torch.randn(tiles, cells**2, HIDDEN, generator=generator, requires_grad=True)
    newline = torch.randn(HIDDEN, generator=generator, requires_grad=True)
    return sampler, features, newline, grids


def reference(sampler: VisionSampler, features, newline, grids: list, settings: dict) -> list[dict]:
    results, tile = [], 0
    for grid in grids:
        g, rows, columns = grid.cells_per_side, grid.tile_rows, grid.tile_columns
        local = features[tile + 1 : tile + grid.num_tiles].view(rows, columns, g, g, -1)
        local = local.permute(0, 2, 1, 3, 4).reshape(rows * g, columns * g, -1)
        weight, bias = sampler.selector.weight, sampler.selector.bias
        args = (features[tile], local, grid.crop, weight, bias)
        results.append(vision_guided_reference(*args, training=sampler.training, newline=newline, **settings))
        tile += grid.num_tiles
    return results


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gate", ["paper", "ste", "switch"])
@pytest.mark.parametrize("case", CASES)
def test_tokens_and_gradients_equal_the_reference(case, gate, training):
    settings = settings_of(case) | {"gate": gate}
    settings["global_view_mode"], scales = settings.pop("global_view"), settings["scales"]
    sampler, features, newline, grids = build(case, gate)
    sampler.train(training)
    visual = sampler(features, newline, grids)
    expected = reference(sampler, features, newline, grids, settings)

    assert visual.counts.tolist() == [len(r["is_newline"]) for r in expected]
    assert visual.is_newline.tolist() == [flag for r in expected for flag in r["is_newline"]]
    tokens = torch.cat([r["tokens"] for r in expected])
    # float32 against float64: measured 2.9e-6 at most, tokens are up to 4.2.
    torch.testing.assert_close(visual.tokens.double(), tokens, atol=1e-5, rtol=0)
    if len(scales) > 2:
        assert len({s for r in expected for s in r["scale"] if s is not None}) > 1  # the case is not trivial

    leaves = [features, newline]
    if gate == "switch" or (training and gate in ("paper", "ste")):
        leaves += [sampler.selector.weight, sampler.selector.bias]
    probe = torch.randn(tokens.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad((visual.tokens.double() * probe).sum(), leaves)
    theirs = torch.autograd.grad((tokens * probe).sum(), leaves)
    for got, want in zip(ours, theirs, strict=True):
        # Sums over up to some hundred windows: measured 2.7e-4 at most, gradients are up to 126.
        torch.testing.assert_close(got.double(), want.double(), atol=1e-3, rtol=0)


def test_choices_equal_the_reference():
    case = CASES[3]
    sampler, features, newline, grids = build(case, "paper")
    settings = {"window": 4, "scales": SEVEN, "score_pooling": "max", "global_view_mode": "compress", "gate": "paper"}
    windows = sampler.eval()(features, newline, grids).windows
    for image, result in enumerate(reference(sampler, features, newline, grids, settings)):
        ours: list[int | None] = []
        for view in (GLOBAL_VIEW, LOCAL_MAP):
            mine = (windows.image == image) & (windows.view == view)
            raster = (windows.row[mine] * 1000 + windows.column[mine]).argsort()
            ours += [None if c < 0 else c for c in windows.choice[mine][raster].tolist()]
        assert ours == result["scale"]


def test_ties_go_to_the_finest_scale():
    sampler, features, newline, grids = build(CASES[0], "paper")
    torch.nn.init.zeros_(sampler.selector.weight)
    torch.nn.init.zeros_(sampler.selector.bias)
    choice = sampler(features, newline, grids).windows.choice
    assert set(choice.tolist()) == {-1, 0}


def test_footprints_cover_the_crop_once():
    """Together the tokens' cells cover each valid cell of both views exactly once."""
    sampler, features, newline, grids = build(CASES[3], "paper")
    visual = sampler(features, newline, grids)
    for image, grid in enumerate(grids):
        for view, (rows, columns) in enumerate([(8, 8), (8 * grid.tile_rows, 8 * grid.tile_columns)]):
            covered = torch.zeros(rows, columns, dtype=torch.long)
            mine = (visual.image == image) & (visual.footprint[:, 0] == view)
            for _, top, bottom, left, right in visual.footprint[mine].tolist():
                covered[top:bottom, left:right] += 1
            top, bottom, left, right = (0, 8, 0, 8) if view == GLOBAL_VIEW else grid.crop
            assert bool((covered[top:bottom, left:right] == 1).all())
            assert covered.max() <= 1
