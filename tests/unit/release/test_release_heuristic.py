"""The release's heuristic sampler against the float64 reference, and in a model."""

import pytest
import torch

from megatron_focus.release.configuration_focus_llava import FocusLlavaConfig
from megatron_focus.release.heuristic_sampling import heuristic_tokens
from megatron_focus.release.image_geometry import image_grid
from tests.reference.heuristic import heuristic_reference
from tests.unit.release import tiny_models as tiny

HIDDEN, CELLS, SIDE = 12, 8, 112
SIZES = [(300, 400), (57, 333), (512, 511), (100, 41)]
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]
GRIDS = [image_grid(size, PINPOINTS, SIDE, CELLS) for size in SIZES]
HEURISTIC = {"method": "heuristic", "scales": ["1x1"], "heuristic_keep": 0.4}


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(sum(g.num_tiles for g in GRIDS), CELLS**2, HIDDEN, generator=generator, requires_grad=True)
    return features, torch.randn(HIDDEN, generator=generator, requires_grad=True)


def reference(settings: dict, features: torch.Tensor, newline: torch.Tensor) -> list[dict]:
    results, tile = [], 0
    for grid in GRIDS:
        rows, columns, end = grid.tile_rows, grid.tile_columns, tile + grid.num_tiles
        local = features[tile + 1 : end].view(rows, columns, CELLS, CELLS, -1)
        local = local.permute(0, 2, 1, 3, 4).reshape(rows * CELLS, columns * CELLS, -1)
        args = settings["window"], settings["heuristic_keep"], settings["global_view"], newline
        results.append(heuristic_reference(features[tile], local, grid.crop, *args))
        tile = end
    return results


@pytest.mark.parametrize(
    ("window", "keep", "view"),
    [(4, 0.4, "compress"), (4, 1.0, "compress"), (1, 0.6, "compress"), (8, 0.8, "keep"), (4, 0.123, "drop")],
)
def test_tokens_and_gradients_equal_the_reference(window, keep, view):
    features, newline = inputs()
    settings = {"window": window, "heuristic_keep": keep, "global_view": view}
    visual, expected = heuristic_tokens(features, newline, GRIDS, settings), reference(settings, features, newline)
    # Far more than the float32 scores' error (3e-7), so both sides must agree.
    assert min(r["margin"] for r in expected) > 1e-5
    tokens = torch.cat([r["tokens"] for r in expected])
    assert visual.counts.tolist() == [len(r["is_newline"]) for r in expected]
    assert visual.is_newline.tolist() == [flag for r in expected for flag in r["is_newline"]]
    assert torch.equal(visual.tokens.double(), tokens)
    direction = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad((visual.tokens * direction).sum(), [features, newline])
    want = torch.autograd.grad((tokens * direction).sum(), [features, newline])
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[1], want[1].float(), rtol=1e-5, atol=1e-5)  # a sum over up to 60 newlines


def test_footprints_are_the_cells_that_the_tokens_are_copies_of():
    features, newline = inputs()
    visual = heuristic_tokens(features, newline, GRIDS, {"window": 4, "heuristic_keep": 0.4, "global_view": "compress"})
    tiles = features.split([grid.num_tiles for grid in GRIDS])
    for token, image, footprint, is_newline in zip(
        visual.tokens, visual.image.tolist(), visual.footprint.tolist(), visual.is_newline.tolist(), strict=True
    ):
        view, top, bottom, left, right = footprint
        assert (bottom - top, right - left) == ((0, 0) if is_newline else (1, 1))
        if is_newline:
            continue
        tile = 1 + top // CELLS * GRIDS[image].tile_columns + left // CELLS if view == 1 else 0
        assert torch.equal(token, tiles[image][tile, top % CELLS * CELLS + left % CELLS])


def test_a_model_has_no_selector_and_keeps_its_share():
    model = tiny.focus_model(vision=HEURISTIC, text={})
    assert not [name for name, _ in model.named_parameters() if "vision_sampler" in name]
    with torch.no_grad():
        [selection] = model(**tiny.batch([tiny.ONE]), output_selection=True).selection
    top, bottom, left, right = selection.crop
    cells = 16 + (bottom - top) * (right - left)
    assert int((~selection.is_newline).sum()) == -(-cells * 4 // 10)
    assert selection.scales == ["1x1"] and selection.num_kept < selection.num_tokens


def test_a_batch_equals_single_prompts():
    model = tiny.focus_model(vision=HEURISTIC, text={})
    prompts = [tiny.ONE, tiny.TWO, tiny.TEXT]
    with torch.no_grad():
        together = model(**tiny.batch(prompts))
        for row, prompt in enumerate(prompts):
            alone = model(**tiny.batch([prompt])).logits[0]
            # Sums in another order: measured 5e-6 at most, logits are up to 7.
            torch.testing.assert_close(together.logits[row, -len(alone) :], alone, atol=3e-5, rtol=0)


def test_without_the_sampler_it_is_llava_next():
    model, stock = tiny.focus_model(vision=HEURISTIC), tiny.focus_model()
    stock.load_state_dict(model.state_dict())
    model.set_samplers(vision=False)
    with torch.no_grad():
        assert torch.equal(model(**tiny.batch([tiny.TWO])).logits, stock(**tiny.batch([tiny.TWO])).logits)


def test_scales_cannot_be_set():
    model = tiny.focus_model(vision=HEURISTIC, text={})
    before = model.samplers
    with pytest.raises(ValueError, match="this model's sampler is heuristic: it keeps single cells"):
        model.set_samplers(scales=["1x1"])
    assert model.samplers == before


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"method": "other"}, "vision_sampler.method is 'other'"),
        ({"heuristic_keep": 0.4}, "it belongs to the method 'heuristic'"),
        (HEURISTIC | {"heuristic_keep": None}, "heuristic_keep is None; it must be a share"),
        (HEURISTIC | {"heuristic_keep": 2}, "heuristic_keep is 2; it must be a share"),
        (HEURISTIC | {"scales": ["1x1", "2x2"]}, "the method 'heuristic' has only"),
    ],
)
def test_settings(vision, message):
    with pytest.raises(ValueError, match=message):
        tiny.focus_config(vision=vision)


def test_a_configuration_from_before_there_was_a_choice_is_learned():
    config = FocusLlavaConfig(**tiny.common("llama"), vision_sampler={"window": 4}, text_sampler={"enabled": False})
    assert (config.vision_sampler["method"], config.vision_sampler["heuristic_keep"]) == ("learned", None)
