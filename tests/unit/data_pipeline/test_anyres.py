from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data as pictures
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.utils import is_torchvision_available

from data_pipeline.anyres import (
    CLIP_MEAN,
    CLIP_STD,
    hf_grid_pinpoints,
    make_tiles,
    normalise,
    plan_tiles,
    valid_cells,
    visual_token_count,
)
from data_pipeline.config import ImageGeometry

PAPER = ImageGeometry()
SMALL = ImageGeometry(
    tile_size=112, patch_size=14, grid_pinpoints=[[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]
)
GEOMETRIES = {"paper": PAPER, "small": SMALL}
sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000)).filter(lambda s: max(s) < 250 * min(s))


def reference_processor(geometry, tokenizer=None):
    side = {"height": geometry.tile_size, "width": geometry.tile_size}
    images = LlavaNextImageProcessorPil(size=side, crop_size=side, image_grid_pinpoints=hf_grid_pinpoints(geometry))
    if tokenizer is None:
        return images
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=geometry.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.fixture(scope="module", params=GEOMETRIES)
def geometry(request):
    return GEOMETRIES[request.param]


@settings(max_examples=300)
@given(size=sizes)
@example(size=(336, 336))  # fits the wide and the tall canvas equally: the order of the pinpoints decides
@example(size=(100, 100))
@example(size=(480, 640))
def test_plan_equals_transformers(size):
    height, width = size
    for geometry in GEOMETRIES.values():
        plan = plan_tiles(height, width, geometry)
        canvas = select_best_resolution((height, width), hf_grid_pinpoints(geometry))
        assert (plan.canvas_height, plan.canvas_width) == canvas
        assert (plan.rows, plan.cols) == (canvas[0] // geometry.tile_size, canvas[1] // geometry.tile_size)
        resized = get_patch_output_size(np.empty((3, height, width), np.uint8), canvas, "channels_first")
        assert (plan.resized_height, plan.resized_width) == resized
        assert plan.pad_top == (canvas[0] - resized[0]) // 2 and plan.pad_left == (canvas[1] - resized[1]) // 2


@pytest.mark.parametrize("name", GEOMETRIES)
def test_token_count_equals_transformers(name, tokenizer):
    geometry = GEOMETRIES[name]
    processor = reference_processor(geometry, tokenizer)

    @settings(max_examples=300)
    @given(size=sizes)
    def check(size):
        expected = processor._get_num_multimodal_tokens(image_sizes=[size])["num_image_tokens"]
        assert [visual_token_count(*size, geometry)] == list(expected)

    check()


@pytest.mark.parametrize(("size", "count"), [((672, 672), 2928), ((480, 640), 2340), ((336, 336), 1176)])
def test_token_counts_of_the_paper_geometry(size, count):
    assert visual_token_count(*size, PAPER) == count


def test_crop_equals_pack_image_features(geometry):
    """The model's own function is run on a map whose features are the cells' coordinates."""
    g = geometry.cells_per_side
    model = SimpleNamespace(
        config=SimpleNamespace(
            vision_config=SimpleNamespace(image_size=geometry.tile_size, patch_size=geometry.patch_size),
            image_grid_pinpoints=hf_grid_pinpoints(geometry),
        )
    )
    random = np.random.default_rng(0)
    for height, width in [(1, 200), (200, 1), (7, 3000), (335, 337), *random.integers(1, 2000, (60, 2)).tolist()]:
        if max(height, width) > 250 * min(height, width):
            continue
        plan = plan_tiles(height, width, geometry)
        row, column = np.meshgrid(np.arange(plan.rows * g), np.arange(plan.cols * g), indexing="ij")
        cells = torch.from_numpy(np.stack([row, column], -1)).float()
        local = cells.view(plan.rows, g, plan.cols, g, 2).permute(0, 2, 1, 3, 4).reshape(-1, g * g, 2)
        features = torch.cat([torch.full((1, g * g, 2), -1.0), local])
        newline = torch.tensor([-2.0, -2.0])
        packed, lengths = LlavaNextModel.pack_image_features(
            model, [features], torch.tensor([[height, width]]), "default", newline
        )
        assert int(lengths[0]) == visual_token_count(height, width, geometry)
        crop = valid_cells(height, width, plan, geometry)
        kept = packed[0][g * g :].view(crop.height, crop.width + 1, 2)
        assert torch.equal(kept[:, :-1], cells[crop.top : crop.bottom, crop.left : crop.right])
        assert torch.equal(kept[:, -1], newline.expand(crop.height, 2))


def test_too_elongated_image_is_refused():
    with pytest.raises(ValueError, match="9000x1 pixels is too elongated"):
        plan_tiles(1, 9000, PAPER)


IMAGES = {
    "photo, enlarged": lambda: pictures.chelsea(),
    "photo, reduced": lambda: np.kron(pictures.coffee(), np.ones((3, 3, 1), np.uint8)),
    "photo, odd size": lambda: pictures.astronaut()[:173, :501],
    "noise": lambda: np.random.default_rng(0).integers(0, 256, (999, 777, 3), dtype=np.uint8),
}


def drift(image, processor, geometry):
    """Differences from the reference in levels of 0 to 255."""
    rgb = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    ours = normalise(make_tiles(rgb, plan_tiles(*image.shape[:2], geometry), geometry), torch.float32)
    theirs = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    assert ours.shape == theirs.shape
    return (ours - theirs).abs() * torch.tensor(CLIP_STD).view(3, 1, 1) * 255


@pytest.mark.parametrize("name", IMAGES)
def test_drift_from_pillow_backend(name):
    difference = drift(IMAGES[name](), reference_processor(PAPER), PAPER)
    # Measured over these images: maximum 2 levels, mean 0.0013 to 0.0040 (both round to uint8 between the passes).
    assert difference.max() < 2.5
    assert difference.mean() < 0.006


@pytest.mark.skipif(not is_torchvision_available(), reason="transformers' torch backend needs torchvision")
@pytest.mark.parametrize("name", IMAGES)
def test_equal_to_torch_backend(name):
    from transformers import LlavaNextImageProcessor

    side = {"height": 336, "width": 336}
    processor = LlavaNextImageProcessor(size=side, crop_size=side, image_grid_pinpoints=hf_grid_pinpoints(PAPER))
    # Measured: the pixels are equal; what is left is float32 rounding of the normalisation (below 1e-4 levels).
    assert drift(IMAGES[name](), processor, PAPER).max() < 1e-3


def test_tiles_by_hand(small_geometry):
    """An image of exactly the canvas size is cut without resampling; the rest of a larger canvas is black."""
    rgb = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (3, 224, 224), dtype=np.uint8))
    tiles = make_tiles(rgb, plan_tiles(224, 224, small_geometry), small_geometry)
    assert tiles.shape == (5, 3, 112, 112) and tiles.dtype == torch.uint8
    assert torch.equal(tiles[2], rgb[:, :112, 112:])
    assert torch.equal(tiles[3], rgb[:, 112:, :112])

    rgb = rgb[:, :112, :112].contiguous()
    plan = plan_tiles(112, 112, small_geometry)
    assert (plan.rows, plan.cols, plan.pad_top, plan.pad_left) == (2, 1, 56, 0)
    tiles = make_tiles(rgb, plan, small_geometry)
    assert torch.equal(tiles[0], rgb)
    assert torch.equal(torch.cat([tiles[1], tiles[2]], 1)[:, 56:168], rgb)
    assert not tiles[1][:, :56].any() and not tiles[2][:, 56:].any()


def test_normalise_dtype():
    tiles = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = (tiles[0, 0].double() / 255 - CLIP_MEAN[2]) / CLIP_STD[2]
    assert normalise(tiles, torch.bfloat16).dtype == torch.bfloat16
    # float32 rounding of values up to 2.6.
    torch.testing.assert_close(normalise(tiles, torch.float32)[0, 2].double(), expected, rtol=0, atol=1e-6)
