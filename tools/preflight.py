"""Look at all nodes of a job before it burns GPU hours, and name the one that is not as the others."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_focus.diagnosis.launch import read_launch
from megatron_focus.diagnosis.verdict import GPU_MIN_SHARE
from megatron_focus.program import run_program

if TYPE_CHECKING:
    from megatron_focus.diagnosis.preflight import Outcome

EXAMPLE = """\
example, in an allocation, one process per GPU:
  srun --ntasks-per-node=8 --gpus-per-node=8 python tools/preflight.py examples/paper/finetune.yaml --min-bandwidth 40
on one machine:
  torchrun --nproc_per_node=2 -m tools.preflight examples/quickstart/config.yaml

exit code: 0 all good, 1 a bad node (named on standard error as well), 2 the configuration or a file that it
names cannot be used on any node
"""


def main(arguments: list[str] | None = None) -> int:
    """Run on every rank; rank 0 prints."""
    options = _parser().parse_intermixed_args(arguments)
    # After parsing: torch and transformers take seconds to import.
    from megatron_focus.diagnosis.preflight import BAD_CONFIGURATION, GOOD, Limits, run_preflight
    from megatron_focus.diagnosis.preflight_report import report, summary

    limits = Limits(
        rendezvous_timeout_s=options.rendezvous_timeout,
        stage_timeout_s=options.stage_timeout,
        min_share=options.min_share,
        min_bandwidth=options.min_bandwidth,
    )
    unwritten: list[OSError] = []

    def announce(outcome: "Outcome") -> None:
        print(report(outcome))
        print(summary(outcome), flush=True)
        if outcome.configuration_error is not None:
            print(f"error: {outcome.configuration_error}", file=sys.stderr, flush=True)
        elif outcome.exit_code != GOOD:
            print(summary(outcome), file=sys.stderr, flush=True)
        try:
            if options.json is not None:
                options.json.write_text(json.dumps(outcome.to_json(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:  # the other ranks still wait for the exit code
            unwritten.append(error)

    try:
        code = run_preflight(read_launch(), options.config, options.overrides, limits, announce)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    if unwritten:
        print(f"error: {unwritten[0]}", file=sys.stderr)
        return BAD_CONFIGURATION
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.preflight",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    parser.add_argument(
        "--min-bandwidth",
        type=_positive,
        metavar="GB/s",
        help="least all-reduce bandwidth of the job and of each link between two nodes that is measured",
    )
    parser.add_argument(
        "--min-share",
        type=_positive,
        help=f"least speed of a GPU or node as a share of the median (default: {GPU_MIN_SHARE} with GPUs; without, "
        "speeds are not compared); a single link below it is a warning",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all of it as JSON")
    parser.add_argument(
        "--rendezvous-timeout", type=_positive, default=300.0, metavar="S", help="wait for ranks (%(default)s s)"
    )
    parser.add_argument(
        "--stage-timeout", type=_positive, default=180.0, metavar="S", help="each speed test ends in (%(default)s s)"
    )
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    # Threads of a library whose peers are gone must not keep the process.
    run_program(main, os._exit)
