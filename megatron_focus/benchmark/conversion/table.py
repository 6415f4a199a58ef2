"""What conversion takes, as a table with its verdict."""

from dataclasses import dataclass

from megatron_focus.benchmark.conversion.tool_process import ToolRun

WANTED_SIZE, WANTED_MEMORY = 3.0, 1.5
"""A model of so many GB should be converted in less than so many GB."""
_TOLERANCE = 0.1
"""How far the size of the model may be from ``WANTED_SIZE``: a decoder has whole layers."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """One run of a tool on one model."""

    size: int
    """Bytes of the model's weights."""
    largest_tensor: int
    """Bytes."""
    name: str
    """Direction and layout."""
    run: ToolRun


HEADER = (
    f"{'model, GB':>9} {'largest tensor':>14}  {'':22} {'seconds':>8} {'MB/s':>6} {'memory, GB':>11} {'of model':>9}"
)
LEGEND = """\
memory: peak resident memory of the tool's process beyond what it had when it had been imported (interpreter and
libraries); seconds: without the imports. Random bfloat16 weights; checkpoints of TP 2 are written by as many ranks as
they have, and all exports of a model have the same weights, to the bit."""


def format_table(conversions: list[Conversion]) -> str:
    """All runs as lines of text."""
    return "\n".join([HEADER, *map(_line, conversions)])


def _line(row: Conversion) -> str:
    return (
        f"{row.size / 1e9:9.2f} {row.largest_tensor / 1e9:14.2f}  {row.name:22} {row.run.seconds:8.1f} "
        f"{row.size / 1e6 / row.run.seconds:6.0f} {row.run.memory / 1e9:11.2f} {row.run.memory / row.size:9.0%}"
    )


def verdict(conversions: list[Conversion]) -> str:
    """The one line at the end."""
    wanted = f"wanted: a {WANTED_SIZE:g} GB model in under {WANTED_MEMORY:g} GB"
    near = [row for row in conversions if abs(row.size / 1e9 / WANTED_SIZE - 1) <= _TOLERANCE]
    worst = max(near or conversions, key=lambda row: row.run.memory)
    seen = f"{worst.name} of {worst.size / 1e9:.2f} GB took {worst.run.memory / 1e9:.2f} GB, the most of "
    if not near:
        return f"{seen}all ({wanted}; no model of that size was measured)"
    return f"{seen}that size ({wanted}, {'met' if worst.run.memory < WANTED_MEMORY * 1e9 else 'NOT met'})"
