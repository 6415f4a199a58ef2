"""Many samples at a glance, in one picture."""

import textwrap
from collections.abc import Sequence

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from data_pipeline.inspection.sample_view import SampleView

COLUMNS = 5
CELL_WIDTH, CELL_HEIGHT, MARGIN = 300, 300, 12
"""Pixels."""
_PICTURE_HEIGHT = 214
_GAP = 6
_INK, _FAINT, _PAPER, _FRAME = (28, 35, 43), (92, 102, 112), (255, 255, 255), (221, 225, 230)
_LETTERS = 36
"""That fit in a line."""


def contact_sheet(samples: Sequence[SampleView]) -> Image.Image:
    """A cell for each sample: its images on their canvases (a text's beginning if it has none), id, source, tokens.

    Returns:
        A picture of ``min(COLUMNS, n)`` cells by as many as it takes, with a margin around each.
    """
    assert samples
    columns = min(COLUMNS, len(samples))
    rows = -(-len(samples) // columns)
    sheet = Image.new(
        "RGB", (columns * (CELL_WIDTH + MARGIN) + MARGIN, rows * (CELL_HEIGHT + MARGIN) + MARGIN), "#f4f5f7"
    )
    for number, sample in enumerate(samples):
        row, column = divmod(number, columns)
        place = (MARGIN + column * (CELL_WIDTH + MARGIN), MARGIN + row * (CELL_HEIGHT + MARGIN))
        sheet.paste(_cell(sample), place)
    return sheet


def _cell(sample: SampleView) -> Image.Image:
    cell = Image.new("RGB", (CELL_WIDTH, CELL_HEIGHT), _PAPER)
    pen = ImageDraw.Draw(cell)
    pen.rectangle((0, 0, CELL_WIDTH - 1, CELL_HEIGHT - 1), outline=_FRAME)
    area = (CELL_WIDTH - 2 * _GAP, _PICTURE_HEIGHT - _GAP)
    if sample.images:
        cell.paste(_mosaic([view.picture for view in sample.images], area), (_GAP, _GAP))
    else:
        text = " ".join(turn.text for turn in sample.turns)
        lines = textwrap.wrap(text, _LETTERS, max_lines=10, placeholder=" …")
        pen.multiline_text((16, 16), "\n".join(lines), _FAINT, _font("DejaVu Sans", 12), spacing=6)
    lines = _caption(sample)
    pen.text((10, _PICTURE_HEIGHT + 6), lines[0], _INK, _font("DejaVu Sans:bold", 13))
    pen.multiline_text((10, _PICTURE_HEIGHT + 27), "\n".join(lines[1:]), _FAINT, _font("DejaVu Sans", 12), spacing=4)
    return cell


def _mosaic(pictures: Sequence[Image.Image], area: tuple[int, int]) -> Image.Image:
    """Up to four pictures in equal parts of the area, each in the middle of its part."""
    shown = pictures[:4]
    columns = 1 if len(shown) == 1 else 2
    rows = -(-len(shown) // columns)
    part = ((area[0] - _GAP * (columns - 1)) // columns, (area[1] - _GAP * (rows - 1)) // rows)
    mosaic = Image.new("RGB", area, _PAPER)
    for number, picture in enumerate(shown):
        row, column = divmod(number, columns)
        small = picture.copy()
        small.thumbnail(part)
        left = column * (part[0] + _GAP) + (part[0] - small.width) // 2
        mosaic.paste(small, (left, row * (part[1] + _GAP) + (part[1] - small.height) // 2))
    return mosaic


def _caption(sample: SampleView) -> list[str]:
    sizes = [f"{view.width}×{view.height}" for view in sample.images]
    more = f" and {len(sizes) - 2} more" if len(sizes) > 2 else ""
    visual = f" + {sample.visual_tokens:,} → {sample.kept_tokens:,} visual" if sizes else ""
    lines = [sample.id, sample.source, (", ".join(sizes[:2]) + more + " px") if sizes else "no image"]
    lines.append(f"{sample.text_tokens:,} text{visual} tokens")
    # One line each, and only characters that the font has.
    return [_shortened(line.replace("\n", " ")) for line in lines]


def _shortened(line: str) -> str:
    return line if len(line) <= _LETTERS + 4 else f"{line[: _LETTERS + 3]}…"


def _font(pattern: str, size: int) -> ImageFont.FreeTypeFont:
    """One that comes with matplotlib."""
    return ImageFont.truetype(font_manager.findfont(pattern), size)
