"""Time training and prefill beside transformers' LLaVA-NeXT with the same weights and batch, samplers off and on."""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from megatron_focus.benchmark.presets import PRESETS
from megatron_focus.benchmark.run import Report, run
from megatron_focus.benchmark.table import LEGEND, format_phase, verdict
from megatron_focus.config.schema import ParallelConfig
from megatron_focus.parallel.initialize import initialize, shut_down

EXAMPLE = """\
examples:
  python tools/benchmark.py --preset cpu
  python tools/benchmark.py --preset gpu --device cuda --transformer-impl transformer_engine --json speed.json
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, see ``--help``."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="sizes and batch (default: %(default)s)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="float32 on cpu, bfloat16 on cuda (default: %(default)s)",
    )
    parser.add_argument(
        "--transformer-impl",
        choices=("local", "transformer_engine"),
        default="local",
        help="layers of this project's side (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, help="rounds that count (default: the preset's)")
    parser.add_argument("--json", type=Path, help="also write every time and ratio to this file")
    parsed = parser.parse_args(arguments)
    if parsed.rounds is not None and parsed.rounds < 1:
        parser.error(f"argument --rounds: must be at least 1, not {parsed.rounds}")
    if parsed.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch finds no CUDA device here")
    if parsed.device == "cpu" and torch.cuda.is_available():
        parser.error("argument --device: to use the CPU of a machine with CUDA, set CUDA_VISIBLE_DEVICES= (empty)")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    """Run; exit code 2 for a benchmark that cannot run."""
    options = parse_arguments(arguments)
    preset = PRESETS[options.preset]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        device = initialize(ParallelConfig(), seed=1234)
        report = run(preset, device, options.transformer_impl, options.rounds or preset.rounds)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            shut_down()
    print_report(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    return 0


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
