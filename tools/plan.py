"""Plan a run without a GPU: memory, step time, messages, and the best parallel layouts of a cluster."""

import argparse
from pathlib import Path

from megatron_focus.planning.hardware import GPUS
from megatron_focus.planning.typical import TYPICAL
from megatron_focus.program import run_program

EXAMPLE = """\
examples:
  python tools/plan.py examples/backbones/llama-3-8b/64gpus.yaml --gpus 64 --gpu a100-80gb
  python tools/plan.py config.yaml data.path=prepared/mix --sequence-lengths manifest --gpus 16 --gpu h100-80gb \\
      --write-config run.yaml

Exit codes: 0, the configuration's own layout fits; 1, it does not, or cannot run on so many GPUs (the report says what
would); 2, the configuration cannot run in any layout.
"""


def main(arguments: list[str] | None = None) -> int:
    """Plan and print."""
    options = _parser().parse_intermixed_args(arguments)
    from megatron_focus.planning.command import run  # after parsing: torch and transformers take seconds to import

    return run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tools/plan.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file of a run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    parser.add_argument("--gpus", type=_count, required=True, help="GPUs of the job")
    parser.add_argument("--gpu", choices=GPUS, required=True, help="their kind")
    parser.add_argument("--nodes-of", type=_count, default=8, help="GPUs a node (%(default)s)")
    parser.add_argument("--without-flash-attn", action="store_true", help="that package is not installed there")
    parser.add_argument(
        "--sequence-lengths",
        choices=("assumed", "manifest"),
        default="assumed",
        help="lengths of the samples: assumed (see below), or of the data set at data.path (%(default)s)",
    )
    parser.add_argument(
        "--image", type=_size, default=(TYPICAL.height, TYPICAL.width), help="assumed image, WIDTHxHEIGHT (640x480)"
    )
    parser.add_argument(
        "--text-tokens",
        type=_tokens,
        nargs=3,
        metavar=("ALL", "LEARNT", "USER"),
        default=(TYPICAL.text, TYPICAL.labels, TYPICAL.instruction),
        help="assumed tokens of text of a sample (200 100 80)",
    )
    parser.add_argument(
        "--kept-vision",
        type=_share,
        default=TYPICAL.kept_vision,
        help="share of the visual tokens that the vision-guided sampler keeps (%(default)s: uniform routing)",
    )
    parser.add_argument(
        "--kept-text",
        type=_share,
        default=TYPICAL.kept_text,
        help="share of those that the text-guided sampler keeps (%(default)s: the paper's, at gamma 0.85)",
    )
    parser.add_argument("--top", type=_count, default=5, help="layouts in the table (%(default)s)")
    parser.add_argument("--json", type=Path, help="file to create with all figures")
    parser.add_argument("--write-config", type=Path, help="YAML file to create, with the best layout")
    return parser


def _count(value: str) -> int:
    if int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value} must be 1 or more")
    return int(value)


def _tokens(value: str) -> int:
    if int(value) < 0:
        raise argparse.ArgumentTypeError(f"{value} must be 0 or more")
    return int(value)


def _share(value: str) -> float:
    if not 0 < float(value) <= 1:
        raise argparse.ArgumentTypeError(f"{value} must be above 0 and at most 1")
    return float(value)


def _size(value: str) -> tuple[int, int]:
    width, _, height = value.partition("x")
    return _count(height), _count(width)


if __name__ == "__main__":
    run_program(main)
