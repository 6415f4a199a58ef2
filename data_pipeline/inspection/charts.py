"""Draws the histograms of a data set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from data_pipeline.config import ImageGeometry
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.inspection.counts import SampleLengths
from data_pipeline.inspection.histograms import (
    count_grids,
    linear_histogram,
    log_histogram,
    split_by_source,
)
from data_pipeline.inspection.row_forecast import RowForecast

BEFORE, AFTER, LIMIT = "#9aa5b1", "#2563a8", "#c2410c"
SOURCES = ("#2563a8", "#e08a00", "#2a9d74", "#b83280", "#6d5bd0", "#7aa6c2", "#8a6d3b")
"""Of the largest sources, told apart by most colour-blind readers."""
OTHERS = "#c3c9d0"
_DENSITY = LinearSegmentedColormap.from_list("density", ["#a3c8e8", "#2563a8", "#0c2340"])
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": "#6b7480",
    "axes.labelcolor": "#2d3640",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "legend.frameon": False,
    "xtick.color": "#4a5560",
    "ytick.color": "#4a5560",
}
SIZE, DPI = (6.4, 4.0), 150
"""Inches, and pixels to the inch."""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def draw_charts(
    folder: Path, manifest: Manifest, lengths: SampleLengths, forecast: RowForecast, geometry: ImageGeometry
) -> list[Path]:
    """Write every chart as a PNG to ``folder``; those of images are left out where there is none."""
    by_source = {
        name: split_by_source(manifest, v) for name, v in (("before", lengths.before), ("after", lengths.after))
    }
    text = split_by_source(manifest, lengths.text)
    charts: dict[str, Callable[[Figure], None]] = {
        "tokens": lambda figure: _tokens(figure, lengths, forecast.budget),
        "tokens_by_source": lambda figure: _tokens_by_source(figure, by_source["before"], by_source["after"]),
        "text_tokens": lambda figure: _text_tokens(figure, text),
        "rows": lambda figure: _rows(figure, forecast),
    }
    if len(manifest.heights):
        charts["canvases"] = lambda figure: _canvases(figure, count_grids(manifest, geometry), geometry)
        charts["image_sizes"] = lambda figure: _image_sizes(figure, manifest, geometry)
    return [_save(draw, folder / f"{name}.png") for name, draw in charts.items()]


def _save(draw: Callable[[Figure], None], path: Path) -> Path:
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        draw(figure)
        figure.savefig(path)
    return path


def _tokens(figure: Figure, lengths: SampleLengths, budget: int) -> None:
    axes = figure.add_subplot()
    histogram = linear_histogram([lengths.before, lengths.after])
    for counts, colour, name in (
        (histogram.counts[0], BEFORE, "LLaVA-NeXT's visual tokens"),
        (histogram.counts[1], AFTER, "after the expected compression"),
    ):
        axes.stairs(counts, histogram.edges, color=colour, fill=True, alpha=0.45)
        axes.stairs(counts, histogram.edges, color=colour, linewidth=1.4, label=name)
    axes.set_xlim(0, max(histogram.edges[-1], budget * 1.04))
    axes.axvline(budget, color=LIMIT, linestyle="--", linewidth=1.2, label=f"a row: {budget:,} tokens")
    axes.set(title="Length of samples", xlabel="tokens of a sample (text and images)", ylabel="samples")
    axes.legend()
    _thousands(axes)


def _tokens_by_source(
    figure: Figure, before: dict[str, NDArray[np.int64]], after: dict[str, NDArray[np.int64]]
) -> None:
    axes = figure.add_subplot()
    figure.set_figheight(max(SIZE[1], 1.0 + 0.27 * len(before)))
    for series, colour, name, shift in ((before, BEFORE, "before", -0.17), (after, AFTER, "after compression", 0.17)):
        low, quarter, middle, three, high = np.array([np.quantile(v, _QUANTILES) for v in series.values()]).T
        places = np.arange(len(series)) + shift
        axes.hlines(places, low, high, color=colour, linewidth=1.2)
        axes.barh(places, three - quarter, 0.28, quarter, color=colour, label=name)
        axes.scatter(middle, places, s=13, color="white", edgecolors=colour, linewidths=1.2, zorder=3)
    axes.set_yticks(range(len(before)), [_shortened(name) for name in before])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(left=0)
    axes.set(title="Length by source", xlabel="tokens of a sample: 5, 25, 50, 75 and 95 % of samples are shorter")
    figure.legend(loc="outside upper right", ncols=2)
    axes.xaxis.set_major_formatter(_THOUSANDS)


def _text_tokens(figure: Figure, by_source: dict[str, NDArray[np.int64]]) -> None:
    axes = figure.add_subplot()
    names = list(by_source)
    shown = names if len(names) <= len(SOURCES) else names[: len(SOURCES) - 1]
    rest = [by_source[name] for name in names[len(shown) :]]
    series = [by_source[name] for name in shown] + ([np.concatenate(rest)] if rest else [])
    labels = [_shortened(name) for name in shown] + ([f"{len(rest)} others"] if rest else [])
    colours = [*SOURCES[: len(shown)], *([OTHERS] if rest else [])]
    histogram = log_histogram(series)
    below = np.zeros(histogram.counts.shape[1], dtype=np.int64)
    for counts, label, colour in zip(histogram.counts, labels, colours, strict=True):
        axes.stairs(below + counts, histogram.edges, baseline=below, color=colour, fill=True, label=label)
        below = below + counts
    axes.set_xscale("log")
    axes.set_xlim(histogram.edges[0], histogram.edges[-1])
    axes.set(title="Text of samples", xlabel="text tokens of a sample, template included", ylabel="samples")
    axes.legend(fontsize=8, reverse=True)
    _thousands(axes)
    axes.xaxis.set_minor_formatter(FuncFormatter(_round_numbers(histogram.edges)))


def _canvases(figure: Figure, counts: dict[tuple[int, int], int], geometry: ImageGeometry) -> None:
    axes = figure.add_subplot()
    tile, total = geometry.tile_size, sum(counts.values())
    names = [f"{cols * tile}×{rows * tile} px\n{cols} × {rows}, {1 + rows * cols} tiles" for rows, cols in counts]
    bars = axes.bar(names, list(counts.values()), 0.62, color=AFTER)
    axes.bar_label(bars, [f"{count:,}\n{count / total:.1%}" for count in counts.values()], padding=3, fontsize=8)
    axes.margins(y=0.2)
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.set(title="Canvases of images", xlabel="width × height; tiles with the global view", ylabel="images")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(_THOUSANDS)


def _image_sizes(figure: Figure, manifest: Manifest, geometry: ImageGeometry) -> None:
    axes = figure.add_subplot()
    sides = np.concatenate([manifest.heights, manifest.widths])
    bins = np.geomspace(sides.min() * 0.85, sides.max() * 1.18, 48)
    drawn = axes.hist2d(manifest.widths, manifest.heights, [bins, bins], cmap=_DENSITY, norm=LogNorm(), cmin=1)[3]
    colours = figure.colorbar(drawn, ax=axes, label="images")
    colours.ax.yaxis.set_major_formatter(_THOUSANDS)
    colours.ax.yaxis.set_minor_formatter(NullFormatter())
    canvases = np.array(geometry.grid_pinpoints)
    axes.scatter(
        canvases[:, 0], canvases[:, 1], marker="+", s=60, color=LIMIT, linewidths=1.6, label="canvases", zorder=3
    )
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_formatter(_THOUSANDS)
        axis.set_minor_formatter(FuncFormatter(_round_numbers(bins)))
    axes.tick_params(axis="x", which="minor", labelsize=8)
    axes.tick_params(axis="y", which="minor", labelsize=8)
    axes.legend(loc="lower right")
    axes.set(title="Sizes of images", xlabel="width in pixels", ylabel="height in pixels")


def _rows(figure: Figure, forecast: RowForecast) -> None:
    axes = figure.add_subplot()
    counts, edges = np.histogram(np.minimum(forecast.fill, 1.0), np.linspace(0, 1, 41))
    axes.stairs(counts, edges, color=AFTER, fill=True)
    if len(forecast.fill):
        mean = float(forecast.fill.mean())
        axes.axvline(mean, color=LIMIT, linestyle="--", linewidth=1.2, label=f"mean {mean:.1%}")
        axes.legend(loc="upper left")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.set(title="Packed rows", xlabel=f"expected tokens, as a share of {forecast.budget:,}", ylabel="rows")


_THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")


def _thousands(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(_THOUSANDS)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(_THOUSANDS)


def _round_numbers(edges: NDArray[np.float64]) -> Callable[[float, Any], str]:
    """Labels of a short logarithmic axis: 2 and 5 of each decade, which ticks of powers of ten alone leave bare."""
    leading = "25" if edges[-1] < 100 * edges[0] else ""
    return lambda value, _: f"{value:,.0f}" if f"{value:.0e}"[0] in leading else ""


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
