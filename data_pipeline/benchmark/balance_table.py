"""From the simulated spreads to the table and its verdict."""

from data_pipeline.benchmark.balance import BalanceReport, Result, Spread, Way
from data_pipeline.benchmark.balance_surprise import SURPRISES

WANTED = 1.03
"""Spread that should not be reached."""

LEGEND = """\
Spread: cost of the costliest rank divided by the mean rank's, mean over the steps [95th percentile]. "none": the
samplers keep what is expected; "windows", "pictures": content decides, which no plan can know (assumed sizes, see
data_pipeline/benchmark/balance_surprise.py). Unavoidable: the spread that surprise alone leaves. Faster: old step time
divided by the new one, on the same samples. Fill: share of the rows' token budget, which is not padded. Fillers: share
of the rows that only keep a rank without samples in step."""


def format_balance(report: BalanceReport) -> str:
    """The report as lines of text, the verdict last."""
    head = (
        f"{report.steps} steps of {report.source}, {report.samples:,} samples; rows of {report.max_sequence_length} "
        f"tokens, {report.kept_ratio:.0%} of the visual tokens expected"
    )
    columns = f"{'surprise':10} {'before':>17} {'after':>17} {'unavoidable':>17} {'faster':>7}"
    lines = [head]
    for result in report.results:
        lines += [_title(result), columns]
        for name in SURPRISES:
            spreads = (result.before.spread[name], result.after.spread[name], result.unavoidable[name])
            lines.append(f"{name:10} {' '.join(map(_spread, spreads))} {result.faster[name]:7.3f}")
    return "\n".join([*lines, LEGEND, verdict(report)])


def verdict(report: BalanceReport) -> str:
    """The one line at the end."""
    parts = []
    for name in SURPRISES:
        worst = max(report.results, key=lambda result: result.after.spread[name].mean)
        found = worst.after.spread[name].mean
        where = f"{worst.ranks} ranks, {worst.samples_per_rank} samples each"
        under = sum(result.after.spread[name].mean < WANTED for result in report.results)
        parts.append(f"{name}: at most {found:.3f} ({where}), {under} of {len(report.results)} under {WANTED}")
    met = all(result.after.spread["none"].mean < WANTED for result in report.results)
    return (
        f"spread of expected cost wanted under {WANTED}: {'met' if met else 'NOT met everywhere'}; {'; '.join(parts)}"
    )


def _title(result: Result) -> str:
    ways = ", ".join(f"{name} {_way(way)}" for name, way in (("before", result.before), ("after", result.after)))
    planned = f"planned in {1e3 * result.plan_seconds:.1f} ms"
    return f"\n{result.ranks} ranks, {result.samples_per_rank} samples each: {ways}; {planned}"


def _way(way: Way) -> str:
    return f"{way.rows_per_rank:.2f} rows a rank, {way.fill:.1%} fill, {way.fillers:.1%} fillers"


def _spread(spread: Spread) -> str:
    return f"{spread.mean:9.4f} [{spread.p95:.3f}]"
