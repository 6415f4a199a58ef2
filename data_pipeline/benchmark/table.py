"""From times to the table and its verdict."""

from dataclasses import dataclass
from statistics import median

from data_pipeline.benchmark.epoch import EpochReport
from data_pipeline.benchmark.measure import ratios
from data_pipeline.benchmark.sides import CPU, FAST, SLOW

WANTED = {SLOW: 4.0, FAST: 1.5}
"""How many times faster than each of transformers' processors the CPU path should be."""

WANTED_RESUME, WANTED_PLAN = 5.0, 20.0
"""Seconds, at a million samples."""
WANTED_MEMORY = 1.0
"""GiB, at a million samples."""
WANTED_FILL = 0.95
"""Share of the rows' token budget."""

Range = tuple[float, float, float]
"""Median, smallest, largest."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One side under one setting."""

    name: str
    seconds: list[float]
    """Of each round."""
    images_per_second: float
    """At the median time."""
    times_faster: dict[str, Range]
    """Than each of transformers' processors, from the ratios within each round."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """All sides on images of one size with one number of threads."""

    width: int
    height: int
    threads: int
    kilobytes: float
    """Mean size of the files."""
    largest_drift: float
    """Largest mean difference of a side's tiles from those of transformers (PIL), in levels of 0 to 255."""
    rows: list[Row]

    @property
    def name(self) -> str:
        """For the reader."""
        return f"{self.width}x{self.height}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def make_rows(times: dict[str, list[float]], images: int) -> list[Row]:
    """The rows of a table from the seconds that ``images`` images took each side, round by round."""
    return [
        Row(
            name=side,
            seconds=seconds,
            images_per_second=images / median(seconds),
            times_faster={other: ratios(times[other], seconds) for other in WANTED if other in times},
        )
        for side, seconds in times.items()
    ]


HEADER = f"{'':22} {'images/s':>9} {'ms/image':>9} {f'x {SLOW}':>24} {f'x {FAST}':>24}"

LEGEND = """\
From the bytes of JPEGs in a shard to normalised float32 tiles; each of the threads works on images of its own, and DALI
has as many. x: how many times faster, median [smallest - largest] of the ratios within a round."""


def format_table(table: Table) -> str:
    """The table as lines of text."""
    title = f"{table.name} ({table.kilobytes:.0f} kB each; tiles within {table.largest_drift:.2f} levels on average)"
    return "\n".join([title, HEADER, *map(_line, table.rows)])


def _line(row: Row) -> str:
    ranges = [_range(row.times_faster[other]) if other in row.times_faster else "-" for other in WANTED]
    rate = f"{row.images_per_second:9.1f} {1000 / row.images_per_second:9.2f}"
    return f"{row.name:22} {rate} {ranges[0]:>24} {ranges[1]:>24}"


def _range(values: Range) -> str:
    middle, low, high = values
    return f"{middle:.2f} [{low:.2f} - {high:.2f}]"


def verdict(tables: list[Table]) -> str:
    """The one line at the end."""
    parts = []
    for other, wanted in WANTED.items():
        found = [row.times_faster[other][0] for table in tables for row in table.rows if _compares(row, other)]
        if found:
            met = "met" if min(found) >= wanted else "NOT met"
            parts.append(f"at least {min(found):.2f} x {other} (wanted: {wanted:g}, {met})")
        else:
            parts.append(f"{other} not measured (wanted: {wanted:g})")
    return f"{CPU}: {', '.join(parts)}"


def _compares(row: Row, other: str) -> bool:
    return row.name == CPU and other in row.times_faster


def format_epoch(report: EpochReport) -> str:
    """What the loader costs, as lines of text with what was wanted."""
    memory = report.memory / 2**30
    rows = [
        ("start to the first batch", report.start, "s", None, ""),
        ("resume in the third epoch", report.resume, "s", report.resume < WANTED_RESUME, f"under {WANTED_RESUME:g}"),
        ("tokens of 100,000 sizes", report.sizes, "s", None, ""),
        ("planning of an epoch", report.plan, "s", report.plan < WANTED_PLAN, f"under {WANTED_PLAN:g}"),
        ("peak memory", memory, "GiB", memory < WANTED_MEMORY, f"under {WANTED_MEMORY:g}"),
        ("row budget used", 100 * report.fill, "%", report.fill >= WANTED_FILL, f"{WANTED_FILL:.0%}"),
    ]
    lines = [f"loader with a manifest of {report.rows:,} samples; memory is on top of the imported libraries'"]
    for name, found, unit, met, aim in rows:
        suffix = "" if met is None else f"  (wanted: {aim}, {'met' if met else 'NOT met'})"
        lines.append(f"{name:26} {found:8.2f} {unit}{suffix}")
    return "\n".join(lines)
