"""From runs to the tables and their verdict."""

from dataclasses import dataclass
from statistics import median

from data_pipeline.benchmark.measure import ratios
from megatron_focus.benchmark.inference.side import Footprint, Timing
from megatron_focus.benchmark.inference.stages import STAGES
from megatron_focus.benchmark.inference.work import PrefillWork
from megatron_focus.benchmark.presets import OFF
from megatron_focus.benchmark.table import TRANSFORMERS, WANTED_SHARE, Range, format_range

WANTED_OVERHEAD = 0.03
"""Share of the prefill that the samplers may take."""
_SAMPLERS = ("vision sampler", "text sampler")


@dataclass(frozen=True, kw_only=True)
class InferenceRow:
    """One side on one batch."""

    name: str
    visual: int
    kept: int
    tflop: float
    prefill: list[float]
    """Seconds of each round."""
    decode: list[float]
    """Seconds for a new token of every row, of each round."""
    stages: dict[str, float]
    """Median share of the prefill that each stage took."""
    prefill_over_stock: Range
    """Time of transformers / time of this side, here and below from the ratios within each round."""
    prefill_over_stock_allowed: float
    """The same ratio of the FLOPs."""
    prefill_over_off: Range
    """Time with the samplers off / time of this side."""
    prefill_over_off_allowed: float
    """The same ratio of the FLOPs."""
    decode_over_stock: Range
    cache_bytes: int
    peak_bytes: int

    @property
    def achieved(self) -> float:
        """Share of the allowed speed-up over "samplers off" that was reached."""
        return self.prefill_over_off[0] / self.prefill_over_off_allowed

    @property
    def overhead(self) -> float:
        """Share of the prefill that the samplers took."""
        return sum(self.stages[stage] for stage in _SAMPLERS)


@dataclass(frozen=True, kw_only=True)
class InferenceTable:
    """All sides on one batch."""

    batch_size: int
    logit_difference: float
    """Largest difference between both models' logits with the samplers off, as a share of the largest logit."""
    rows: list[InferenceRow]

    @property
    def sampled(self) -> list[InferenceRow]:
        """Those with a sampler on."""
        return [row for row in self.rows if row.name not in (TRANSFORMERS, OFF.name)]


def make_table(
    batch_size: int,
    logit_difference: float,
    timings: dict[str, list[Timing]],
    footprints: dict[str, Footprint],
    work: dict[str, PrefillWork],
) -> InferenceTable:
    """The rows of a batch; ``TRANSFORMERS`` and ``OFF`` are among the sides."""
    prefill = {side: [run.stages["total"] for run in runs] for side, runs in timings.items()}
    decode = {side: [run.decode for run in runs] for side, runs in timings.items()}
    rows = [
        InferenceRow(
            name=side,
            visual=work[side].visual,
            kept=work[side].kept,
            tflop=work[side].flops / 1e12,
            prefill=prefill[side],
            decode=decode[side],
            stages={s: median(run.stages[s] / run.stages["total"] for run in runs) for s in STAGES},
            prefill_over_stock=ratios(prefill[TRANSFORMERS], prefill[side]),
            prefill_over_stock_allowed=work[TRANSFORMERS].flops / work[side].flops,
            prefill_over_off=ratios(prefill[OFF.name], prefill[side]),
            prefill_over_off_allowed=work[OFF.name].flops / work[side].flops,
            decode_over_stock=ratios(decode[TRANSFORMERS], decode[side]),
            cache_bytes=footprints[side].cache_bytes,
            peak_bytes=footprints[side].peak_bytes,
        )
        for side, runs in timings.items()
    ]
    return InferenceTable(batch_size=batch_size, logit_difference=logit_difference, rows=rows)


_PREFILL = (
    f"{'prefill':14} {'visual tokens':>16} {'TFLOP':>6} {'seconds':>8} {'x transformers':>21} {'FLOPs':>5} "
    f"{'x samplers off':>21} {'FLOPs':>5} {'reached':>7}  {'vision':>6} "
    f"{'v. s.':>5} {'t. s.':>5} {'LLM':>5} {'rest':>5}"
)
_DECODE = (
    f"{'decoding':14} {'ms/token':>9} {'x transformers':>21}  {'KV cache, MiB':>13} {'share':>6}  "
    f"{'peak, MiB':>10} {'share':>6}"
)
LEGEND = """\
visual tokens: of all rows, into the LLM -> left by the text-guided sampler. x: how many times faster, median
[smallest - largest] of the ratios within a round; FLOPs: the ratio that the FLOP count allows; reached: share of it
over "samplers off". Shares of the prefill: vision tower and projector; vision-guided sampler; text-guided sampler;
layers, norm and head of the LLM; the rest. Decoding: a new token of every row. KV cache: all layers, after the prefill.
Peak: of torch's allocator (on a CPU from its profiler) in prefill and decoding, beyond the weights. share: of
transformers'."""


def format_table(table: InferenceTable) -> str:
    """The batch as lines of text."""
    title = f"batch {table.batch_size} (logits of both models differ by {table.logit_difference:.1e} of the largest)"
    stock = next(row for row in table.rows if row.name == TRANSFORMERS)
    lines = [title, _PREFILL, *map(_prefill_line, table.rows), "", _DECODE]
    return "\n".join(lines + [_decode_line(row, stock) for row in table.rows])


def _prefill_line(row: InferenceRow) -> str:
    tokens = f"{row.visual:,}" if row.visual == row.kept else f"{row.visual:,} -> {row.kept:,}"
    sampled = row.name not in (TRANSFORMERS, OFF.name)
    shares = {stage: f"{100 * share:.1f}%" for stage, share in row.stages.items()}
    return (
        f"{row.name:14} {tokens:>16} {row.tflop:6.3f} {median(row.prefill):8.3f} "
        f"{format_range(row.prefill_over_stock):>21} {row.prefill_over_stock_allowed:5.2f} "
        f"{format_range(row.prefill_over_off):>21} {row.prefill_over_off_allowed:5.2f} "
        f"{f'{row.achieved:.0%}' if sampled else '':>7}  {shares['vision']:>6} {shares['vision sampler']:>5} "
        f"{shares['text sampler']:>5} {shares['language model']:>5} {shares['rest']:>5}"
    )


def _decode_line(row: InferenceRow, stock: InferenceRow) -> str:
    return (
        f"{row.name:14} {1000 * median(row.decode):9.1f} {format_range(row.decode_over_stock):>21}  "
        f"{row.cache_bytes / 2**20:13,.1f} {row.cache_bytes / stock.cache_bytes:6.0%}  "
        f"{row.peak_bytes / 2**20:10,.1f} {row.peak_bytes / stock.peak_bytes:6.0%}"
    )


def verdict(tables: list[InferenceTable]) -> str:
    """The one line at the end."""
    reached = {table.batch_size: min(row.achieved for row in table.sampled) for table in tables}
    overhead = {table.batch_size: max(row.overhead for row in table.sampled) for table in tables}
    share = ", ".join(f"{value:.0%} at batch {batch}" for batch, value in reached.items())
    taken = ", ".join(f"{value:.1%} at batch {batch}" for batch, value in overhead.items())
    fast, light = min(reached.values()) >= WANTED_SHARE, max(overhead.values()) < WANTED_OVERHEAD
    return (
        f"prefill reaches at least {share} of the FLOP-count speed-up (wanted: {WANTED_SHARE:.0%}, "
        f"{'met' if fast else 'NOT met'}); samplers take at most {taken} of it (wanted: under {WANTED_OVERHEAD:.0%}, "
        f"{'met' if light else 'NOT met'})"
    )
