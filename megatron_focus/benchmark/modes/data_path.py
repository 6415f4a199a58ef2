"""``--data``: from JPEGs to tiles, and what the loader costs."""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.benchmark.defaults import SIZES
from megatron_focus.benchmark.modes.mode import Mode, Option
from megatron_focus.benchmark.modes.shared import ROUNDS, positive, size

_SIZES = Option("--sizes", "of the images", {"type": size, "nargs": "+", "metavar": "WIDTHxHEIGHT"})
_THREADS = Option("--threads", "numbers of threads", {"type": positive, "nargs": "+", "metavar": "N"})
_IMAGES = Option("--images", "images that a round works through", {"type": positive, "metavar": "N"})
_SAMPLES = Option("--samples", "in the large manifest", {"type": positive, "metavar": "N"})


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    from data_pipeline.benchmark import run as data_benchmark  # here: the command line needs none of it
    from data_pipeline.benchmark import table as data_table
    from data_pipeline.benchmark.epoch import measure_epoch

    report = data_benchmark.run(
        sizes=options.sizes, threads=options.threads, rounds=options.rounds, images=options.images
    )
    with tempfile.TemporaryDirectory() as folder:
        epoch = measure_epoch(Path(folder), options.samples)
    print(f"data path, {report.images} images a round: {report.environment}")
    for name, need in report.unavailable.items():
        print(f"not measured: {name} (needs {need})")
    for table in report.tables:
        print("\n" + data_table.format_table(table))
    print("\n" + data_table.LEGEND + "\n")
    print(data_table.format_epoch(epoch) + "\n")
    print(data_table.verdict(report.tables))
    return report.to_json() | {"loader": asdict(epoch)}


DATA_PATH = Mode(
    flag="--data",
    title="the data path",
    options={ROUNDS: 7, _SIZES: SIZES, _THREADS: (1, 2), _IMAGES: 16, _SAMPLES: 1_000_000},
    run=_measure,
)
