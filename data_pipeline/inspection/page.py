"""One HTML file about a data set: totals, charts, and samples with their images and tokens."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image
from transformers import PreTrainedTokenizerFast

from data_pipeline.conversations.chat_templates import IMAGE_TOKEN
from data_pipeline.conversations.conversation import Turn
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.inspection.canvas import CanvasView
from data_pipeline.inspection.counts import SourceCounts
from data_pipeline.inspection.page_style import CSS
from data_pipeline.inspection.page_template import TEMPLATE
from data_pipeline.inspection.sample_view import SampleView
from data_pipeline.inspection.tables import Table, share
from data_pipeline.inspection.token_spans import Role, TokenSpan, token_spans

_JPEG_QUALITY = 82


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """What stands on the page."""

    manifest: Manifest
    total: SourceCounts
    table: Table
    lines: list[str]
    """Sentences below the totals."""
    left_out: list[str]
    changed: list[str]
    charts: list[Path]
    """PNG files beside the page, which also holds them itself."""
    contact_sheet: str
    """Name of the file beside the page."""
    samples: Sequence[SampleView]
    seed: int
    """With which the samples were chosen."""


def write_page(
    path: Path, content: PageContent, tokenizer: PreTrainedTokenizerFast | None = None, renderer: Renderer | None = None
) -> None:
    """Write the page; texts of the data set are escaped, images are inside it, and it needs no script.

    Args:
        path: the file.
        content: what to show.
        tokenizer: to show tokens, with ``renderer``; without, texts are shown by turns.
        renderer: of the data set.
    """
    assert (tokenizer is None) == (renderer is None)
    manifest = content.manifest
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["thousands"] = "{:,}".format
    html = environment.from_string(TEMPLATE).render(
        css=Markup(CSS),  # our own
        title=manifest.folder.rsplit("/", 1)[-1],
        folder=manifest.folder,
        chat_template=manifest.info["chat_template"],
        hash=manifest.hash,
        totals=_totals(content.total),
        lines=content.lines,
        table=content.table,
        left_out=content.left_out,
        changed=content.changed,
        charts=[
            {"href": chart.name, "name": chart.stem.replace("_", " "), "data": _data_uri(chart.read_bytes(), "png")}
            for chart in content.charts
        ],
        contact_sheet=content.contact_sheet,
        with_tokens=renderer is not None,
        seed=content.seed,
        samples=[_sample(view, tokenizer, renderer) for view in content.samples],
    )
    path.write_text(html, encoding="utf-8")


def _totals(total: SourceCounts) -> list[tuple[str, str]]:
    kept = f"after compression ({share(total.kept_tokens, total.visual_tokens)})"
    return [
        (f"{total.samples:,}", "samples"),
        (f"{total.images:,}", "images"),
        (f"{total.text_tokens:,}", f"text tokens, {share(total.loss_tokens, total.text_tokens)} learnt"),
        (f"{total.visual_tokens:,}", "visual tokens of LLaVA-NeXT"),
        (f"{total.kept_tokens:,}", kept),
    ]


def _sample(view: SampleView, tokenizer: PreTrainedTokenizerFast | None, renderer: Renderer | None) -> dict[str, Any]:
    chips = [f"image {number} · {image.visual_tokens:,} visual tokens" for number, image in enumerate(view.images, 1)]
    shown: dict[str, Any] = {"view": view, "images": [_image(image) for image in view.images]}
    if tokenizer is not None and renderer is not None:
        shown["tokens"] = _tokens(token_spans(renderer.render(view.turns), tokenizer), chips)
    else:
        shown["turns"] = _turns(view.turns, chips)
    return shown


def _tokens(spans: Sequence[TokenSpan], chips: Sequence[str]) -> list[dict[str, Any]]:
    left = iter(chips)
    tokens = []
    for span in spans:
        chip = span.role is Role.IMAGE
        # The line feed is kept, so that the text still breaks there.
        text = next(left) if chip else span.text.replace("\n", "↵\n")
        classes = span.role + (" x" if span.special else "")
        tokens.append({"text": text, "chip": chip, "classes": classes, "ids": ", ".join(map(str, span.ids))})
    return tokens


def _turns(turns: Sequence[Turn], chips: Sequence[str]) -> list[dict[str, Any]]:
    left = iter(chips)
    shown = []
    for turn in turns:
        pieces = turn.text.split(IMAGE_TOKEN) if turn.images else [turn.text]
        parts = [{"text": pieces[0], "chip": False}]
        for piece in pieces[1:]:
            parts += [{"text": next(left), "chip": True}, {"text": piece, "chip": False}]
        shown.append({"role": turn.role, "parts": parts})
    return shown


def _image(view: CanvasView) -> dict[str, Any]:
    plan = view.plan
    caption = [
        f"{view.format}, {view.width}×{view.height} px",
        f"canvas {plan.canvas_width}×{plan.canvas_height} px",
        f"{plan.cols} × {plan.rows} tiles, {view.visual_tokens:,} tokens",
    ]
    # Drawn with twice the pixels, for sharp screens.
    return {"data": _data_uri(_jpeg(view.picture), "jpeg"), "width": view.picture.width // 2, "caption": caption}


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
