"""Look at a prepared data set: counts, histograms, samples with their tiles and tokens. Or verify all its samples."""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_focus.config.loading import load_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.program import run_program

if TYPE_CHECKING:
    from data_pipeline.dataset.manifest import Manifest

BAD_SAMPLES = "bad_samples.jsonl"
LISTED = 100
"""Bad samples that are also printed."""
EXAMPLE = """\
examples:
  python tools/inspect_data.py prepared/mix --tokenizer tokenizers/llama-3 --output inspection/mix
  python tools/inspect_data.py https://example.org/mix --config run.yaml --samples 50 --seed 1
  python tools/inspect_data.py prepared/mix --verify --workers 16
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python tools/inspect_data.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prepared", metavar="PREPARED", help="folder or URL of what tools/prepare_data.py wrote")
    parser.add_argument(
        "--output", type=Path, help="folder for the page and its pictures (default: inspection/NAME of the data set)"
    )
    parser.add_argument("--config", type=Path, help="a run's YAML file: tiles, order, row and batch sizes are its own")
    report = parser.add_argument_group("the report")
    report.add_argument("--tokenizer", type=Path, help="folder of the data set's tokenizer, to show tokens")
    report.add_argument("--samples", type=int, default=24, help="random samples to show (%(default)s)")
    report.add_argument("--seed", type=int, default=0, help="the same seed shows the same samples (%(default)s)")
    report.add_argument(
        "--kept", type=float, default=0.39, help="share of visual tokens expected after compression (%(default)s)"
    )
    report.add_argument(
        "--max-sequence-length", type=int, help="tokens of a row (default: the configuration's, or 6144)"
    )
    report.add_argument(
        "--global-batch-size", type=int, help="samples of a step (default: the configuration's, or 128)"
    )
    check = parser.add_argument_group("verification, instead of the report")
    check.add_argument(
        "--verify", action="store_true", help=f"compare all samples with their hashes; bad ones go to {BAD_SAMPLES}"
    )
    check.add_argument("--decode", action="store_true", help="with --verify: decode every image too")
    check.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="with --verify: processes (default: the cores this process may use, here %(default)s); 0: none beside "
        "this one",
    )
    args = parser.parse_args(arguments)
    if args.decode and not args.verify:
        parser.error("argument --decode: only used with --verify")
    lowest = {"samples": 1, "seed": 0, "max_sequence_length": 1, "global_batch_size": 1, "workers": 0}
    for name, least in lowest.items():
        if (value := getattr(args, name)) is not None and value < least:
            parser.error(f"argument --{name.replace('_', '-')}: must be at least {least}, not {value}")
    if not 0 < args.kept <= 1:
        parser.error(f"argument --kept: must be a share above 0, at most 1, not {args.kept:g}")
    if args.output is None:
        args.output = Path("inspection", args.prepared.rstrip("/").rsplit("/", 1)[-1])
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 when all went well, 1 when a sample is bad or nothing could be shown (the reason is on stderr)."""
    args = parse_arguments(arguments)
    try:
        from data_pipeline.dataset.manifest import Manifest  # after parsing, as below: torch takes seconds to import

        config = load_config(args.config)
        manifest = Manifest.load(args.prepared)
        return _verify(args, config, manifest) if args.verify else _report(args, config, manifest)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1


def _report(args: argparse.Namespace, config: RunConfig, manifest: "Manifest") -> int:
    from data_pipeline.inspection.report import ReportOptions, write_report
    from data_pipeline.loading.planning import StepPlanner

    planner = StepPlanner(
        # What cannot be trained on is counted here, whatever training does about it.
        replace(
            config.data,
            max_sequence_length=args.max_sequence_length or config.data.max_sequence_length,
            on_bad_sample="skip",
        ),
        config.model.image,
        manifest,
        global_batch_size=args.global_batch_size or config.training.global_batch_size,
        data_parallel_size=1,
        global_views=config.model.vision_sampler.global_views,
    )
    options = ReportOptions(
        geometry=config.model.image,
        kept_ratio=args.kept,
        samples=args.samples,
        seed=args.seed,
        tokenizer=args.tokenizer,
    )
    write_report(manifest, planner, args.output, options, say=print)
    return 0


def _verify(args: argparse.Namespace, config: RunConfig, manifest: "Manifest") -> int:
    from data_pipeline.inspection.verify import verify

    max_image_pixels = config.model.image.max_image_pixels
    bad = verify(manifest, max_image_pixels=max_image_pixels, decode_images=args.decode, num_workers=args.workers)
    what = f"{len(manifest)} samples in {len(manifest.info['shard_bytes'])} shards"
    if not bad:
        print(f"{args.prepared}: {what} are as they were written" + (" and can be decoded" if args.decode else ""))
        return 0
    for entry in bad[:LISTED]:
        print(entry.line())
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / BAD_SAMPLES
    file.write_text("".join(json.dumps(entry.record()) + "\n" for entry in bad), encoding="utf-8")
    num_samples = sum(entry.id is not None for entry in bad)
    more = f", {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    print(f"error: {args.prepared}: {num_samples} bad of {what}{more}; all are listed in {file}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    run_program(main)
