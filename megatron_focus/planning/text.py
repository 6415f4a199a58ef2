"""Words and tables of a plan."""

from collections.abc import Sequence

from megatron_focus.config.schema import ParallelConfig
from megatron_focus.planning.estimate import Estimate
from megatron_focus.planning.hardware import GIB


def layout_name(found: Estimate) -> str:
    """e.g. ``TP 4 x PP 4 x VPP 2 x DP 4, SP, full recomputation``."""
    return name_of(found.config.parallel, found.data_parallel_size)


def name_of(parallel: ParallelConfig, data_parallel_size: int) -> str:
    """The same of a layout that nothing was estimated of."""
    parts = [f"TP {parallel.tensor_model_parallel_size}", f"PP {parallel.pipeline_model_parallel_size}"]
    if parallel.virtual_pipeline_model_parallel_size:
        parts.append(f"VPP {parallel.virtual_pipeline_model_parallel_size}")
    name = " x ".join([*parts, f"DP {data_parallel_size}"])
    if parallel.sequence_parallel:
        name += ", SP"
    return name + f", {parallel.recompute_granularity or 'no'} recomputation"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns as wide as they must be; all but the first column to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / GIB:.1f}"
