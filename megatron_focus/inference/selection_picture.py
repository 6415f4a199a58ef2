"""Draws what the two samplers did to one picture for one or more questions: scales of the windows, and tokens kept.

Everything is drawn in cells: the local map's cells lie where the tiles of the padded canvas put them, and the picture
is stretched to the cells that it covers there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from PIL import Image

from megatron_focus.release.selection import ImageSelection

COLOURS = ("#ffb000", "#dc267f", "#648fff", "#785ef0", "#fe6100", "#00a884", "#8a8a8a")
"""Colours of the scales, finest first, told apart by most colour-blind readers."""
DISCARDED = "#303030"
SHADE = (0.11, 0.13, 0.21, 0.85)
"""What lies over cells without a kept token; not black, which many pictures have themselves."""
COLUMN_INCHES, HEADER_INCHES, CAPTION_INCHES, DPI = 4.2, 0.85, 0.35, 140
SMALL = 0.5
"""Height of the small view's row, as a share of the tiles'."""
LINE_LENGTH = 52
"""Letters of a header line that fit in a column."""


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question about the picture, the model's answer, and what the samplers chose."""

    question: str
    answer: str
    selection: ImageSelection


@dataclass(frozen=True)
class View:
    """The global view or the local map of one picture, and where the picture lies in it; lengths in cells."""

    index: int
    """As in ``ImageSelection.footprint``: 0 global, 1 local."""
    name: str
    rows: int
    columns: int
    picture: tuple[float, float, float, float]
    """Left, right, bottom and top edge of the picture."""
    crop: tuple[int, int, int, int]
    """Top, bottom, left and right of the cells that were read: the picture, rounded as LLaVA-NeXT rounds it."""

    def tokens(self, selection: ImageSelection) -> NDArray[np.bool_]:
        """bool [n], the image's tokens that belong to this view, without newlines."""
        return ((selection.footprint[:, 0] == self.index) & ~selection.is_newline).cpu().numpy()

    def boxes(self, selection: ImageSelection, tokens: NDArray[np.bool_]) -> list[list[int]]:
        """Top, bottom, left and right of each token's cells, without those of the padding."""
        cells = selection.footprint.cpu().numpy()[tokens, 1:]
        top, bottom, left, right = self.crop
        return cells.clip((top, top, left, left), (bottom, bottom, right, right)).tolist()


def views_of(selection: ImageSelection) -> list[View]:
    """The views whose tokens the language model reads."""
    rows, columns = (side * selection.window for side in selection.local_scales.shape)
    height, width = selection.image_size
    # The picture is as large as the canvas allows and lies in its middle.
    scale = min(columns / width, rows / height)
    left, top = (columns - width * scale) / 2, (rows - height * scale) / 2
    views = [View(1, "tiles", rows, columns, (left, columns - left, rows - top, top), selection.crop)]
    if bool((selection.footprint[:, 0] == 0).any()):
        side = selection.cells_per_side
        views.append(View(0, "whole picture in one tile", side, side, (0, side, side, 0), (0, side, 0, side)))
    return views


def draw_picture(picture: Image.Image, asked: list[AnsweredQuestion], out: Path) -> None:
    """Write one PNG: a row for each view; columns for the picture, the scales, and the tokens kept for each question.

    Raises:
        ValueError: there is no question.
    """
    if not asked:
        raise ValueError("a picture of the selection needs at least one question")
    pixels = np.asarray(picture.convert("RGB"))
    selection = asked[0].selection  # scales are the same for every question
    views = views_of(selection)
    high = COLUMN_INCHES * picture.height / picture.width
    heights = [HEADER_INCHES, high, SMALL * high][: 1 + len(views)]
    columns = 2 + len(asked)
    size = (COLUMN_INCHES * columns, sum(heights) + CAPTION_INCHES * len(views))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    headers, *rows = figure.subplots(1 + len(views), columns, height_ratios=heights)
    for axis in np.ravel([headers, *rows]):
        axis.axis("off")

    _write_header(headers[0], "The picture", f"{picture.width} x {picture.height} pixels", "")
    _write_header(headers[1], "Vision-guided sampler", "the scale of each window", f"{_count(selection)} tokens")
    for axis, answered in zip(headers[2:], asked, strict=True):
        kept = answered.selection.kept[~answered.selection.is_newline].cpu().numpy()
        _write_header(axis, answered.question, answered.answer, _share(kept))
    rows[0][0].imshow(pixels)
    for view, axes in zip(views, rows, strict=True):
        _draw_scales(axes[1], pixels, selection, view)
        for axis, answered in zip(axes[2:], asked, strict=True):
            _draw_kept(axis, pixels, answered.selection, view)
    _add_legend(headers[0] if len(rows) == 1 else rows[1][0], selection)
    figure.savefig(out, format="png")


def _write_header(axis: Axes, first: str, second: str, third: str) -> None:
    """Three lines, each kept to the width of a column."""
    styles: list[dict[str, Any]] = [
        {"fontsize": 10.5, "fontweight": "bold"},
        {"fontsize": 10.5, "color": "#1f5fbf"},
        {"fontsize": 9.5, "color": "#404040"},
    ]
    for line, height, style in zip((first, second, third), (0.85, 0.5, 0.15), styles, strict=True):
        text = line if len(line) <= LINE_LENGTH else line[: LINE_LENGTH - 1] + "…"
        # A long line must not make its column wider than the others.
        axis.text(0.5, height, text, ha="center", va="center", in_layout=False, **style)


def _frame(axis: Axes, pixels: NDArray[np.uint8], overlay: NDArray[np.float64] | None, view: View) -> None:
    """Show the picture where it lies among the cells, an overlay [rows, columns, 4] over it, and none of the padding.

    The cells of the small view are as oblong as the picture, which was squeezed into a square.
    """
    left, right, bottom, top = view.picture
    aspect = (pixels.shape[0] / (bottom - top)) / (pixels.shape[1] / (right - left))
    axis.imshow(pixels, extent=view.picture, aspect=aspect)
    if overlay is not None:
        axis.imshow(overlay, extent=(0, view.columns, view.rows, 0), interpolation="nearest", aspect=aspect)
    axis.set(xlim=(left, right), ylim=(bottom, top))


def _draw_scales(axis: Axes, pixels: NDArray[np.uint8], selection: ImageSelection, view: View) -> None:
    """Windows in the colours of their scales, with the outline of every token."""
    scales = selection.local_scales if view.index == 1 else selection.global_scales
    overlay = None
    if scales is not None:
        colours = np.array([to_rgba(_colour(selection, scale), 0.5) for scale in range(len(selection.scales))])
        side, (top, bottom, left, right) = selection.window, view.crop
        overlay = colours[scales.cpu().numpy()].repeat(side, axis=0).repeat(side, axis=1)
        unread = np.ones((view.rows, view.columns), dtype=bool)
        unread[top:bottom, left:right] = False
        overlay[unread, 3] = 0
    grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8)
    _frame(axis, grey, overlay, view)
    tokens = view.tokens(selection)
    axis.add_collection(_outlines(view.boxes(selection, tokens), linewidth=0.7, alpha=1.0))
    axis.set_title(f"{view.name}: {int(tokens.sum())} tokens", fontsize=10)


def _draw_kept(axis: Axes, pixels: NDArray[np.uint8], selection: ImageSelection, view: View) -> None:
    """The picture, dark where no token is left behind the text-guided sampler."""
    tokens = view.tokens(selection)
    kept = selection.kept.cpu().numpy()
    shade = np.full((view.rows, view.columns, 4), SHADE)
    for top, bottom, left, right in view.boxes(selection, tokens & kept):
        shade[top:bottom, left:right, 3] = 0
    _frame(axis, pixels, shade, view)
    axis.add_collection(_outlines(view.boxes(selection, tokens & kept), linewidth=0.5, alpha=0.7))
    axis.set_title(f"{view.name}: {_share(kept[tokens])}", fontsize=10)


def _outlines(boxes: list[list[int]], linewidth: float, alpha: float) -> PatchCollection:
    """White rectangles around cells."""
    patches = [Rectangle((left, top), right - left, bottom - top) for top, bottom, left, right in boxes]
    return PatchCollection(patches, facecolor="none", edgecolor="white", linewidth=linewidth, alpha=alpha)


def _colour(selection: ImageSelection, scale: int) -> str:
    return DISCARDED if selection.scales[scale] == "discard" else COLOURS[scale]


def _count(selection: ImageSelection) -> int:
    return int((~selection.is_newline).sum())


def _share(kept: NDArray[np.bool_]) -> str:
    return f"kept {int(kept.sum())} of {len(kept)} ({100 * kept.mean():.0f} %)" if len(kept) else "no tokens"


def _add_legend(axis: Axes, selection: ImageSelection) -> None:
    """Names of the scales and their share of all windows with a cell of the picture."""
    maps = [scales for scales in (selection.local_scales, selection.global_scales) if scales is not None]
    choices = torch.cat([scales.flatten() for scales in maps])
    choices = choices[choices >= 0]
    entries = []
    for scale, name in enumerate(selection.scales):
        share = 100 * float((choices == scale).float().mean())
        entries.append(Patch(color=_colour(selection, scale), label=f"{name}   {share:.0f} % of windows"))
    title = f"Pooling kernel, in\nwindows of {selection.window} x {selection.window} cells"
    axis.legend(handles=entries, title=title, loc="center", frameon=False, fontsize=10, title_fontsize=10)
