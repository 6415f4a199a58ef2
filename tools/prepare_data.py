"""Turn data sets, as their authors publish them, into shards with a manifest, ready for training.

Killed or interrupted, the same command goes on from the shards that are complete.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from data_pipeline.conversations.chat_templates import TEMPLATE_NAMES
from data_pipeline.decoding.probe import MAX_IMAGE_PIXELS
from data_pipeline.preparation.left_out import LEFT_OUT, ON_BAD_SAMPLE
from data_pipeline.sources.registry import KINDS, open_source
from megatron_focus.program import run_program

EXAMPLE = f"""\
kinds of sources: {", ".join(KINDS)}
  Each is a file of data_pipeline/sources/, which says what the folder has to hold and which options there are.

examples:
  python tools/prepare_data.py --source sharegpt4v=data/sharegpt4v --source chartqa=data/chartqa \\
      --source llava_json=data/mine,file=train.json,name=mine \\
      --tokenizer tokenizers/llama-3 --template llama3 --output prepared/mix
  python tools/prepare_data.py --from prepared/mix --subset 200000 --seed 1 --output prepared/mix-200k
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python tools/prepare_data.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write, or to go on with")
    sets = parser.add_argument_group("from published data sets")
    sets.add_argument(
        "--source",
        action="append",
        metavar="KIND=FOLDER[,option=value]",
        help="a data set and its folder; may be given several times",
    )
    sets.add_argument("--tokenizer", type=Path, help="folder of the tokenizer used for training")
    sets.add_argument("--template", choices=TEMPLATE_NAMES, default="llama3", help="chat template (%(default)s)")
    sets.add_argument("--samples-per-shard", type=int, default=1000, help="records to a .tar file (%(default)s)")
    sets.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes (default: the cores this process may use, here %(default)s); 0: none beside this one",
    )
    sets.add_argument(
        "--on-bad-sample",
        choices=ON_BAD_SAMPLE,
        default="skip",
        help=f"stop at a sample that cannot be used, or leave it out and list it in {LEFT_OUT} (%(default)s)",
    )
    sets.add_argument(
        "--max-left-out",
        type=float,
        default=0.05,
        help="share of a set's samples that may be left out; more is an error (%(default)s)",
    )
    sets.add_argument(
        "--max-image-pixels", type=int, default=100_000_000, help="larger images are bad samples (%(default)s)"
    )
    sets.add_argument("--task", type=int, default=0, help="with --tasks: which part of the work this is, from 0")
    sets.add_argument(
        "--tasks",
        type=int,
        default=1,
        help="share the work among as many commands, on any machines that see the folders; "
        "the one that finds all shards complete finishes the data set (%(default)s)",
    )
    subset = parser.add_argument_group("a random subset of a prepared data set, without copying its shards")
    subset.add_argument("--from", type=Path, dest="prepared", metavar="PREPARED", help="folder of the data set")
    subset.add_argument("--subset", type=int, metavar="N", help="number of samples")
    subset.add_argument("--seed", type=int, default=0, help="the same seed draws the same subset (%(default)s)")
    args = parser.parse_args(arguments)
    _check(parser, args)
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 when the work was done, 1 when it could not be (the reason is on stderr)."""
    args = parse_arguments(arguments)
    try:
        info = _prepare(args) if args.subset is None else _draw_subset(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with {args.output}", file=sys.stderr)
        return 1
    from data_pipeline.preparation.report import count_warnings, summary_table  # as below, after parsing

    if info is None:
        print(f"task {args.task} of {args.tasks} has written its shards; the last one to end finishes {args.output}")
        return 0
    print(summary_table(info))
    for warning in count_warnings(info):
        print(f"warning: {warning}", file=sys.stderr)
    left_out = f"; {info['left_out']} left out, see {args.output / LEFT_OUT}" if info["left_out"] else ""
    print(
        f"{args.output}: {info['samples']} samples with {info['images']} images and {info['text_tokens']} text tokens "
        f"in {len(info['shard_bytes'])} shards{left_out}"
    )
    return 0


def _prepare(args: argparse.Namespace) -> dict[str, Any] | None:
    # After parsing: torch and transformers take seconds to import.
    from data_pipeline.conversations.rendering import Renderer
    from data_pipeline.conversations.tokenizer import load_tokenizer
    from data_pipeline.preparation.prepare import prepare

    renderer = Renderer(load_tokenizer(args.tokenizer), args.template)
    return prepare(
        [open_source(spec) for spec in args.source],
        args.output,
        renderer=renderer,
        max_image_pixels=args.max_image_pixels,
        samples_per_shard=args.samples_per_shard,
        num_workers=args.workers,
        task=args.task,
        num_tasks=args.tasks,
        on_bad_sample=args.on_bad_sample,
        max_left_out=args.max_left_out,
    )


def _draw_subset(args: argparse.Namespace) -> dict[str, Any]:
    from data_pipeline.preparation.subset import draw_subset

    return draw_subset(args.prepared, args.output, samples=args.subset, seed=args.seed)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what argparse itself cannot see."""
    if (args.subset is None) != (args.prepared is None):
        parser.error("--subset and --from go together")
    if args.subset is None and not (args.source and args.tokenizer):
        parser.error("--source and --tokenizer are needed (or --subset and --from)")
    if args.subset is not None and (args.source or args.tokenizer):
        parser.error("--source and --tokenizer do not go with --subset, which draws from what is prepared")
    if args.max_image_pixels > MAX_IMAGE_PIXELS:
        parser.error(f"argument --max-image-pixels: Pillow opens {MAX_IMAGE_PIXELS} at most")
    for name, lowest in (("samples_per_shard", 1), ("workers", 0), ("max_image_pixels", 1), ("tasks", 1), ("seed", 0)):
        if (value := getattr(args, name)) < lowest:
            parser.error(f"argument --{name.replace('_', '-')}: must be at least {lowest}, not {value}")
    if not 0 <= args.task < args.tasks:
        parser.error(f"argument --task: must be from 0 to {args.tasks - 1} with --tasks {args.tasks}, not {args.task}")
    if not 0 <= args.max_left_out <= 1:
        parser.error(f"argument --max-left-out: must be a share from 0 to 1, not {args.max_left_out:g}")


if __name__ == "__main__":
    run_program(main)
