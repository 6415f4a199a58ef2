"""Time training and prefill beside transformers' LLaVA-NeXT with the same weights and batch, samplers off and on.

Other modes: --data, from JPEGs in a shard to image tiles beside transformers' image processors, and what starting,
resuming and planning cost with a large manifest; --inference, a release's prefill, decoding, cache and memory beside
LLaVA-NeXT; --conversion, time and memory of importing and exporting models; --balance, how even the data-parallel ranks
of a step are, simulated.
"""

import argparse
import json
import sys
from pathlib import Path

from megatron_focus.benchmark.modes.balance import BALANCE
from megatron_focus.benchmark.modes.conversion import CONVERSION
from megatron_focus.benchmark.modes.data_path import DATA_PATH
from megatron_focus.benchmark.modes.inference import INFERENCE
from megatron_focus.benchmark.modes.mode import Mode, add_modes, chosen_mode
from megatron_focus.benchmark.modes.training import TRAINING
from megatron_focus.program import run_program

EXAMPLE = """\
examples:
  python tools/benchmark.py --preset cpu
  python tools/benchmark.py --preset gpu --device cuda --transformer-impl transformer_engine --json speed.json
  python tools/benchmark.py --data --sizes 640x480 --threads 1 --rounds 3 --json data.json
  python tools/benchmark.py --inference --batch-sizes 1 8
  python tools/benchmark.py --conversion --conversion-sizes 0.3 1 3
  python tools/benchmark.py --balance --ranks 64 --samples-per-rank 4
"""
MODES = (TRAINING, DATA_PATH, INFERENCE, CONVERSION, BALANCE)


def parse_arguments(arguments: list[str] | None = None) -> tuple[Mode, argparse.Namespace]:
    """The command line, see ``--help``: what is measured, and with which options."""
    parser = argparse.ArgumentParser(
        prog="python tools/benchmark.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="also write everything that was measured to this file")
    add_modes(parser, MODES)
    parsed = parser.parse_args(arguments)
    return chosen_mode(parser, parsed, MODES), parsed


def main(arguments: list[str] | None = None) -> int:
    """Run; exit code 2 for a benchmark that cannot run."""
    mode, options = parse_arguments(arguments)
    try:
        report = mode.run(options)
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_program(main)
