"""``--conversion``: time and memory of tools/import_hf.py and tools/export_hf.py by model size."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_focus.benchmark.modes.mode import Mode, Option


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in GB, such as 0.3")
    return value


_SIZES = Option("--conversion-sizes", "GB of bf16 weights", {"type": _gigabytes, "nargs": "+", "metavar": "GB"})
_FOLDER = Option("--work-folder", "where models are written for a while", {"type": Path, "metavar": "FOLDER"})


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch  # here, as all below: the command line needs none of it

    from megatron_focus.benchmark.conversion.run import run
    from megatron_focus.benchmark.conversion.table import LEGEND, format_table, verdict
    from megatron_focus.benchmark.environment import environment

    conversions = run(options.conversion_sizes, options.work_folder)
    where = environment(torch.device("cpu"))
    print(f"conversion: {where}\n")
    print(format_table(conversions))
    print("\n" + LEGEND + "\n")
    print(verdict(conversions))
    return {"environment": where, "conversions": [asdict(row) for row in conversions]}


CONVERSION = Mode(
    flag="--conversion",
    title="import and export of models",
    options={_SIZES: (0.3, 1.0, 3.0), _FOLDER: None},
    run=_measure,
)
