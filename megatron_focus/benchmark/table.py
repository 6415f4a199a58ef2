"""From times and FLOPs to the table, its verdict and the JSON record."""

from dataclasses import dataclass
from statistics import median

from data_pipeline.benchmark.measure import ratios
from megatron_focus.benchmark.presets import OFF
from megatron_focus.benchmark.work import Work

TRANSFORMERS = "transformers"
WANTED_SHARE = 0.85
"""Share of the speed-up that the FLOP count allows, which the samplers should reach."""

Range = tuple[float, float, float]
"""Median, smallest, largest."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One side of one phase."""

    name: str
    visual: int
    kept: int
    tflop: float
    seconds: list[float]
    tokens_per_second: float
    """Tokens of the samples as LLaVA-NeXT counts them, so that rows are comparable, per median second."""
    over_transformers: Range
    """Time of transformers / time of this side."""
    over_transformers_allowed: float
    """The same ratio of the FLOPs."""
    over_off: Range
    """Time with the samplers off / time of this side."""
    over_off_allowed: float
    """The same ratio of the FLOPs."""

    @property
    def achieved(self) -> float:
        """Share of the allowed speed-up over "samplers off" that was reached."""
        return self.over_off[0] / self.over_off_allowed


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Prefill or training."""

    name: str
    rows: list[Row]

    @property
    def off_over_transformers(self) -> float:
        """Speed of this project with the samplers off, transformers being 1."""
        return next(row.over_transformers[0] for row in self.rows if row.name == OFF.name)

    @property
    def least_achieved(self) -> float:
        """Smallest share of the allowed speed-up over all settings with a sampler."""
        return min(row.achieved for row in self.rows if row.name not in (TRANSFORMERS, OFF.name))


def make_phase(name: str, times: dict[str, list[float]], work: dict[str, Work], tokens: int) -> Phase:
    """The rows of a phase.

    Args:
        name: of the phase.
        times: seconds of each side, round by round; ``TRANSFORMERS`` and ``OFF`` among them.
        work: what each side computes.
        tokens: tokens of the batch with the samplers off.
    """
    rows = [
        Row(
            name=side,
            visual=work[side].visual,
            kept=work[side].kept,
            tflop=work[side].flops / 1e12,
            seconds=seconds,
            tokens_per_second=tokens / median(seconds),
            over_transformers=ratios(times[TRANSFORMERS], seconds),
            over_transformers_allowed=work[TRANSFORMERS].flops / work[side].flops,
            over_off=ratios(times[OFF.name], seconds),
            over_off_allowed=work[OFF.name].flops / work[side].flops,
        )
        for side, seconds in times.items()
    ]
    return Phase(name=name, rows=rows)


HEADER = (
    f"{'':16} {'visual tokens':>16} {'TFLOP':>7} {'seconds':>8} {'tokens/s':>9} "
    f"{'x transformers':>22} {'FLOPs':>5} {'x samplers off':>22} {'FLOPs':>5} {'reached':>7}"
)

LEGEND = """\
visual tokens: into the LLM -> left by the text-guided sampler; tokens/s: tokens of the batch as LLaVA-NeXT counts them.
x: how many times faster, median [smallest - largest] of the ratios within a round; FLOPs: the ratio that the FLOP count
allows; reached: share of it over "samplers off". In training transformers computes the head for every token."""


def format_phase(phase: Phase) -> str:
    """The phase as lines of text."""
    return "\n".join([f"{phase.name}", HEADER, *map(_line, phase.rows)])


def _line(row: Row) -> str:
    tokens = f"{row.visual:,}" if row.visual == row.kept else f"{row.visual:,} -> {row.kept:,}"
    sampled = row.name not in (TRANSFORMERS, OFF.name)
    return (
        f"{row.name:16} {tokens:>16} {row.tflop:7.3f} {median(row.seconds):8.3f} {row.tokens_per_second:9,.0f} "
        f"{format_range(row.over_transformers):>22} {row.over_transformers_allowed:5.2f} "
        f"{format_range(row.over_off):>22} {row.over_off_allowed:5.2f} {f'{row.achieved:.0%}' if sampled else '':>7}"
    )


def format_range(values: Range) -> str:
    """``median [smallest - largest]``."""
    middle, low, high = values
    return f"{middle:.2f} [{low:.2f} - {high:.2f}]"


def verdict(phases: list[Phase]) -> str:
    """The one line at the end."""
    off = ", ".join(f"{phase.off_over_transformers:.2f} x transformers in {phase.name}" for phase in phases)
    share = ", ".join(f"{phase.least_achieved:.0%} in {phase.name}" for phase in phases)
    fast = all(phase.off_over_transformers >= 1 for phase in phases)
    reached = all(phase.least_achieved >= WANTED_SHARE for phase in phases)
    return (
        f"samplers off: {off} (wanted: at least 1, {'met' if fast else 'NOT met'}); samplers on reach at least {share} "
        f"of the FLOP-count speed-up (wanted: {WANTED_SHARE:.0%}, {'met' if reached else 'NOT met'})"
    )
