"""Everything there is to see of a data set, written to a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.config import ImageGeometry
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import load_tokenizer
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.shard_reader import ShardReader
from data_pipeline.inspection.charts import draw_charts
from data_pipeline.inspection.choice import choose_samples
from data_pipeline.inspection.contact_sheet import contact_sheet
from data_pipeline.inspection.counts import SampleLengths, count_sources, total_counts
from data_pipeline.inspection.page import PageContent, write_page
from data_pipeline.inspection.row_forecast import forecast_rows
from data_pipeline.inspection.sample_view import view_samples
from data_pipeline.inspection.tables import changed_lines, forecast_line, left_out_lines, source_table, summary_line
from data_pipeline.inspection.token_spans import check_rendering
from data_pipeline.loading.planning import StepPlanner

PAGE, CONTACT_SHEET = "index.html", "contact_sheet.png"
_SIDE = 728
"""Pixels of the longer side of a drawn canvas: twice those of its place on the page, for sharp screens."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How to look at the data set."""

    geometry: ImageGeometry
    kept_ratio: float
    """Share of the visual tokens that is expected to enter the language model."""
    samples: int
    """How many to show."""
    seed: int
    """Chooses them."""
    tokenizer: Path | None
    """Folder of the tokenizer, to show tokens."""


def write_report(
    manifest: Manifest, planner: StepPlanner, output: Path, options: ReportOptions, say: Callable[[str], None]
) -> None:
    """Write ``index.html``, ``contact_sheet.png`` and the charts to ``output``.

    Args:
        manifest: the data set.
        planner: plans its steps.
        output: a folder; files of an earlier report are overwritten.
        options: see there.
        say: is given each part of the text for a terminal as soon as it is known.

    Raises:
        ValueError: the tokenizer is not the data set's, or a sample cannot be read or decoded (a ``SampleError``).
        OSError: ``output`` cannot be written to.
    """
    tokenizer = renderer = None
    if options.tokenizer is not None:
        tokenizer = load_tokenizer(options.tokenizer)
        renderer = Renderer(tokenizer, manifest.info["chat_template"])
        check_rendering(manifest, renderer, str(options.tokenizer))
    lengths = SampleLengths.of(manifest, options.geometry, options.kept_ratio)
    counts = count_sources(manifest, lengths)
    total = total_counts(counts)
    table, left_out, changed = source_table(counts, total), left_out_lines(counts), changed_lines(counts)
    say("\n".join([table.text(), *(f"left out of {line}" for line in left_out), *(f"changed in {s}" for s in changed)]))
    forecast = forecast_rows(planner, options.kept_ratio)
    lines = [summary_line(total, len(counts)), forecast_line(forecast)]
    say("\n".join(lines))

    reader = ShardReader(manifest)  # finds shards that are missing before anything is written
    output.mkdir(parents=True, exist_ok=True)
    charts = draw_charts(output, manifest, lengths, forecast, options.geometry)
    chosen = choose_samples(manifest, options.samples, options.seed)
    views = list(view_samples(reader, chosen, lengths, options.geometry, _SIDE))
    reader.close()
    contact_sheet(views).save(output / CONTACT_SHEET)
    content = PageContent(
        manifest=manifest,
        total=total,
        table=table,
        lines=lines,
        left_out=left_out,
        changed=changed,
        charts=charts,
        contact_sheet=CONTACT_SHEET,
        samples=views,
        seed=options.seed,
    )
    write_page(output / PAGE, content, tokenizer, renderer)
    say(f"{output / PAGE}: {len(views)} samples; {CONTACT_SHEET} and {len(charts)} charts beside it")
