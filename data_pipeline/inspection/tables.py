"""The counts as tables and sentences, for the terminal and the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.inspection.counts import SourceCounts
from data_pipeline.inspection.row_forecast import RowForecast


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first column holds names, the others numbers."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    """The last one is the total."""

    def text(self) -> str:
        """For a terminal."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        ]
        return "\n".join(line.rstrip() for line in aligned)


def source_table(counts: Sequence[SourceCounts], total: SourceCounts) -> Table:
    """A line for each source, and one for all."""
    header = (
        "source", "samples", "published", "difference", "left out", "images",
        "text tokens", "learnt", "visual tokens", "compressed",
    )  # fmt: skip
    return Table(header, [_source_row(count) for count in (*counts, total)])


def left_out_lines(counts: Sequence[SourceCounts]) -> list[str]:
    """Why samples were left out."""
    return [f"{c.name}: {number:,} × {reason}" for c in counts for reason, number in c.left_out.items()]


def changed_lines(counts: Sequence[SourceCounts]) -> list[str]:
    """With which changes samples were accepted."""
    return [f"{c.name}: {number:,} × {kind}" for c in counts for kind, number in c.changed.items()]


def summary_line(total: SourceCounts, num_sources: int) -> str:
    """The data set in one sentence."""
    visual = total.visual_tokens + total.text_tokens
    after = total.kept_tokens + total.text_tokens
    return (
        f"{total.samples:,} samples of {num_sources} sources with {total.images:,} images: {visual:,} tokens, "
        f"{after:,} after the expected compression ({share(after, visual)})"
    )


def forecast_line(forecast: RowForecast) -> str:
    """The rows in one sentence."""
    planned = "" if forecast.steps == forecast.steps_per_epoch else f", {forecast.steps:,} of them planned"
    line = f"{forecast.steps_per_epoch:,} steps in an epoch{planned}: "
    if len(forecast.samples_per_row):
        line += (
            f"{forecast.rows_per_step.mean():.1f} rows a step, {forecast.samples_per_row.mean():.1f} samples a row, "
            f"rows of {forecast.budget:,} tokens {forecast.fill.mean():.1%} full"
        )
    else:
        line += "no rows"
    why = "left out, as too long for a row or with an image that has no visual token"
    return line + (f"; {why}: {forecast.unusable:,}" if forecast.unusable else "")


def share(part: int, whole: int) -> str:
    """A percentage; a dash of nothing."""
    return f"{part / whole:.0%}" if whole else "–"


def _source_row(count: SourceCounts) -> tuple[str, ...]:
    difference = "–" if count.difference is None else f"{count.difference:+,}" if count.difference else "0"
    numbers = (
        count.images, count.text_tokens, count.loss_tokens, count.visual_tokens, count.kept_tokens
    )  # fmt: skip
    return (
        count.name,
        f"{count.samples:,}",
        "–" if count.published is None else f"{count.published:,}",
        difference,
        f"{sum(count.left_out.values()):,}",
        *(f"{number:,}" for number in numbers),
    )
