"""Time training and prefill beside transformers' LLaVA-NeXT with the same weights and batch, samplers off and on.

With --data, time the data path instead: from JPEGs in a shard to image tiles beside transformers' image processors, and
what starting, resuming and planning cost with a large manifest.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data_pipeline.benchmark import run as data_benchmark
from data_pipeline.benchmark import table as data_table
from data_pipeline.benchmark.epoch import measure_epoch
from megatron_focus.benchmark.presets import PRESETS
from megatron_focus.benchmark.run import Report, run
from megatron_focus.benchmark.table import LEGEND, format_phase, verdict
from megatron_focus.config.schema import ParallelConfig
from megatron_focus.parallel.initialize import initialize, shut_down

EXAMPLE = """\
examples:
  python tools/benchmark.py --preset cpu
  python tools/benchmark.py --preset gpu --device cuda --transformer-impl transformer_engine --json speed.json
  python tools/benchmark.py --data
  python tools/benchmark.py --data --sizes 640x480 --threads 1 --rounds 3 --json data.json
"""
MODEL_DEFAULTS = {"preset": "cpu", "device": "cpu", "transformer_impl": "local"}
DATA_DEFAULTS = {"sizes": data_benchmark.SIZES, "threads": (1, 2), "images": 16, "samples": 1_000_000}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, see ``--help``."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", action="store_true", help="time the data path, not the model")
    parser.add_argument("--rounds", type=_positive, help="rounds that count (default: the preset's; 7 with --data)")
    parser.add_argument("--json", type=Path, help="also write every time and ratio to this file")
    model = parser.add_argument_group("the model")
    model.add_argument("--preset", choices=PRESETS, help="sizes and batch (default: cpu)")
    model.add_argument("--device", choices=("cpu", "cuda"), help="float32 on cpu, bfloat16 on cuda (default: cpu)")
    model.add_argument(
        "--transformer-impl",
        choices=("local", "transformer_engine"),
        help="layers of this project's side (default: local)",
    )
    data = parser.add_argument_group("the data path")
    data.add_argument(
        "--sizes", type=_size, nargs="+", metavar="WIDTHxHEIGHT", help="of the images (default: 640x480 1600x1200)"
    )
    data.add_argument("--threads", type=_positive, nargs="+", metavar="N", help="numbers of threads (default: 1 2)")
    data.add_argument("--images", type=_positive, metavar="N", help="images that a round works through (default: 16)")
    data.add_argument("--samples", type=_positive, metavar="N", help="in the large manifest (default: 1000000)")
    parsed = parser.parse_args(arguments)
    for name in DATA_DEFAULTS if not parsed.data else MODEL_DEFAULTS:
        if getattr(parsed, name) is not None:
            option = "--" + name.replace("_", "-")
            parser.error(f"argument {option}: {'not used with' if parsed.data else 'only used with'} --data")
    for name, value in (DATA_DEFAULTS if parsed.data else MODEL_DEFAULTS).items():
        if getattr(parsed, name) is None:
            setattr(parsed, name, value)
    if parsed.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch finds no CUDA device here")
    if parsed.device == "cpu" and torch.cuda.is_available():
        parser.error("argument --device: to use the CPU of a machine with CUDA, set CUDA_VISIBLE_DEVICES= (empty)")
    return parsed


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 640x480")
    return int(width), int(height)


def main(arguments: list[str] | None = None) -> int:
    """Run; exit code 2 for a benchmark that cannot run."""
    options = parse_arguments(arguments)
    try:
        report = time_data(options) if options.data else time_model(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def time_model(options: argparse.Namespace) -> dict[str, Any]:
    """Time training and prefill, print the report and return it as plain values."""
    preset = PRESETS[options.preset]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        device = initialize(ParallelConfig(), seed=1234)
        report = run(preset, device, options.transformer_impl, options.rounds or preset.rounds)
    finally:
        if torch.distributed.is_initialized():
            shut_down()
    print_report(report)
    return report.to_json()


def time_data(options: argparse.Namespace) -> dict[str, Any]:
    """Time the data path, print the report and return it as plain values."""
    report = data_benchmark.run(
        sizes=options.sizes, threads=options.threads, rounds=options.rounds or 7, images=options.images
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


def print_report(report: Report) -> None:
    """The tables, what they mean, and one line that sums up."""
    print(f"preset {report.preset}, {report.transformer_impl}: {report.environment}")
    print(f"logits of both sides differ by {report.logit_difference:.1e} of the largest\n")
    for phase in report.phases:
        print(format_phase(phase) + "\n")
    print(LEGEND + "\n")
    print(verdict(report.phases))


if __name__ == "__main__":
    sys.exit(main())
