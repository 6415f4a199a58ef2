import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.anyres import make_tiles, plan_tiles
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.shard_reader import ShardReader
from data_pipeline.inspection.canvas import BORDER, draw_canvas, view_canvas
from data_pipeline.inspection.choice import choose_samples
from data_pipeline.inspection.contact_sheet import CELL_HEIGHT, CELL_WIDTH, MARGIN, contact_sheet
from data_pipeline.inspection.counts import SampleLengths
from data_pipeline.inspection.sample_view import view_samples


@pytest.fixture
def views(two_sources, small_geometry):
    manifest = Manifest.load(two_sources)
    lengths = SampleLengths.of(manifest, small_geometry, 0.39)
    reader = ShardReader(manifest)
    return list(view_samples(reader, choose_samples(manifest, 31, 0), lengths, small_geometry, side=224))


def test_image_lies_where_the_tiles_have_it(small_geometry):
    rgb = torch.full((3, 90, 200), 200, dtype=torch.uint8)
    plan = plan_tiles(90, 200, small_geometry)
    tiles = make_tiles(rgb, plan, small_geometry)[1:]
    canvas = tiles.view(plan.rows, plan.cols, 3, 112, 112).permute(0, 3, 1, 4, 2).reshape(-1, plan.cols * 112, 3)
    drawn = np.array(draw_canvas(rgb, plan, small_geometry, side=max(canvas.shape)))
    assert drawn.shape == tuple(canvas.shape)
    image = (canvas.numpy() == 200).all(-1)
    lines = (drawn == BORDER).all(-1) | (drawn == 255).all(-1)
    assert image.any() and not image.all() and 0 < lines.mean() < 0.25
    assert (((drawn == 200).all(-1) == image) | lines).all()


@pytest.mark.parametrize("side", [100, 700])
def test_size_of_the_drawing(image_bytes, small_geometry, side):
    view = view_canvas(image_bytes(500, 90), "x", small_geometry, side)
    assert (view.height, view.width, view.format, view.tiles) == (500, 90, "JPEG", 4)
    assert view.picture.size == (round(side / 3), side)


def test_views(views, two_sources):
    manifest = Manifest.load(two_sources)
    assert [view.id for view in views] == manifest.ids.to_pylist()
    for view in views:
        first = manifest.first_image[view.index]
        assert [(i.height, i.width) for i in view.images] == list(
            zip(manifest.heights[first:], manifest.widths[first:], strict=True)
        )[: len(view.images)]
        assert view.visual_tokens == sum(image.visual_tokens for image in view.images)
    assert {len(view.images) for view in views} == {0, 1, 2}


@pytest.mark.parametrize(("number", "columns", "rows"), [(1, 1, 1), (5, 5, 1), (12, 5, 3)])
def test_contact_sheet(views, number, columns, rows):
    sheet = contact_sheet(views[:number])
    assert sheet.size == (columns * (CELL_WIDTH + MARGIN) + MARGIN, rows * (CELL_HEIGHT + MARGIN) + MARGIN)
    for index in range(columns * rows):
        row, column = divmod(index, columns)
        left, top = MARGIN + column * (CELL_WIDTH + MARGIN), MARGIN + row * (CELL_HEIGHT + MARGIN)
        cell = sheet.crop((left, top, left + CELL_WIDTH, top + CELL_HEIGHT))
        blank = len(cell.getcolors(CELL_WIDTH * CELL_HEIGHT)) == 1
        assert blank == (index >= number)


def test_contact_sheet_shows_the_image(views):
    view = next(view for view in views if len(view.images) == 1)
    picture = Image.new("RGB", view.images[0].picture.size, (255, 0, 0))
    view.images[0].picture.paste(picture)
    colours = {colour: count for count, colour in contact_sheet([view]).getcolors(1 << 20)}
    assert colours[(255, 0, 0)] > 10_000
