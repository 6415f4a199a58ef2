"""The picture of the selection, drawn from made-up choices and from those of a small model."""

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_focus.inference.selection_picture import AnsweredQuestion, draw_picture, views_of
from megatron_focus.release.image_geometry import image_grid
from megatron_focus.release.selection import ImageSelection
from tests.unit.release import tiny_models as tiny

CELLS = 4
WIDTH, HEIGHT = 120, 80


def made_up(kept_in_tiles: bool, global_view: bool = True) -> ImageSelection:
    """A picture of 120 x 80 in 2 x 2 tiles of 4 x 4 cells and windows of 2, one of them discarded."""
    footprint = [(0, r, r + 2, c, c + 2) for r in (0, 2) for c in (0, 2)] if global_view else []
    # The crop's first row of cells is the second row of its windows.
    footprint += [(1, 1, 2, c, c + 1) for c in range(4)] + [(1, 0, 2, 4, 6)]
    footprint += [(1, r, r + 2, c, c + 2) for r in (2, 4, 6) for c in range(0, 8, 2)] + [(1, 2, 2, 8, 8)]
    footprint = torch.tensor(footprint)
    local = torch.tensor([[0, 0, 1, 2], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
    return ImageSelection(
        row=0,
        image_size=(HEIGHT, WIDTH),
        cells_per_side=CELLS,
        drop_layer=2,
        baseline_tokens=CELLS**2 + 6 * 9,
        scales=["1x1", "2x2", "discard"],
        window=2,
        global_scales=torch.ones(2, 2, dtype=torch.long) if global_view else None,
        local_scales=local,
        crop=image_grid((HEIGHT, WIDTH), [[112, 112]], 56, CELLS).crop,
        footprint=footprint,
        is_newline=footprint[:, 3] == footprint[:, 4],
        importance=None,
        kept=(footprint[:, 0] == 0) | kept_in_tiles,
    )


def drawn(out, *asked: AnsweredQuestion, colour="white") -> np.ndarray:
    draw_picture(Image.new("RGB", (WIDTH, HEIGHT), colour), list(asked), out)
    return np.asarray(Image.open(out).convert("L"), dtype=float)


@pytest.mark.parametrize("global_view", [True, False])
def test_tokens_not_kept_are_darkened(tmp_path, global_view):
    bright = AnsweredQuestion("What is bright?", "All", made_up(True, global_view))
    dark = AnsweredQuestion("What is dark?", "All", made_up(False, global_view))
    picture = drawn(tmp_path / "out.png", bright, dark, colour="#d0d0d0")
    assert picture.std() > 10
    columns = picture.shape[1] // 4
    third, fourth = picture[:, 2 * columns : 3 * columns], picture[:, 3 * columns :]
    assert third.mean() > fourth.mean() + 20


def test_picture_lies_in_the_middle_of_its_cells():
    selection = made_up(True)
    tiles, small = views_of(selection)
    assert (tiles.rows, tiles.columns, small.rows, small.columns) == (8, 8, 4, 4)
    # 120 x 80 pixels become 112 x 75 on a canvas of 112 x 112: 18.67 of 112 pixels, 1.33 of 8 cells, above and below.
    assert tiles.picture == pytest.approx((0, 8, 8 - 4 / 3, 4 / 3))
    # What is read differs from it by less than a cell, and nothing outside of it is drawn as read.
    assert selection.crop == (1, 7, 0, 8)
    boxes = np.array(tiles.boxes(selection, tiles.tokens(selection)))
    assert boxes[:, :2].min() == 1 and boxes[:, :2].max() == 7


def test_grey_picture(tmp_path):
    asked = AnsweredQuestion("Which way?", "Up", made_up(True))
    out = tmp_path / "grey.png"
    draw_picture(Image.new("L", (WIDTH, HEIGHT), 90), [asked], out)
    assert np.asarray(Image.open(out)).std() > 10


def test_needs_a_question(tmp_path):
    with pytest.raises(ValueError, match="at least one question"):
        draw_picture(Image.new("RGB", (8, 8)), [], tmp_path / "none.png")


@pytest.mark.parametrize("vision", [{}, {"global_view": "keep"}, {"global_view": "drop"}, {"enabled": False}])
def test_selection_of_a_model(tmp_path, vision):
    model = tiny.focus_model(vision=vision, text={})
    with torch.no_grad():
        selection = model(**tiny.batch([tiny.ONE]), output_selection=True).selection[0]
    width, height = tiny.ONE[1][0][::-1]
    out = tmp_path / "model.png"
    draw_picture(Image.new("RGB", (width, height), "orange"), [AnsweredQuestion("What?", "It", selection)], out)
    assert np.asarray(Image.open(out)).std() > 10
