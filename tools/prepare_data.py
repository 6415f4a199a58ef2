"""Turn a data set into shards with a manifest, ready for training."""

import argparse
import sys
from pathlib import Path

from data_pipeline.config import ImageGeometry
from data_pipeline.conversation import TEMPLATES
from data_pipeline.shards import LEFT_OUT, ON_BAD_SAMPLE, write_shards
from data_pipeline.sources.llava_json import DUPLICATE_IDS, LlavaJson
from data_pipeline.tokenizer import load_tokenizer

EXAMPLE = """\
example:
  python tools/prepare_data.py --json llava_v1_5_mix665k.json --images data/images --source llava-mix \\
      --tokenizer tokenizers/llama-3 --template llama3 --output prepared/llava-mix --on-bad-sample skip
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python tools/prepare_data.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, required=True, help=".json or .jsonl file in LLaVA's form")
    parser.add_argument("--images", type=Path, required=True, help="folder that the image paths are relative to")
    parser.add_argument("--source", required=True, help="name of the data set, for reports")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer used for training")
    parser.add_argument("--template", choices=TEMPLATES, default="llama3", help="chat template (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist yet")
    parser.add_argument(
        "--samples-per-shard", type=int, default=1000, help="samples a .tar file (default: %(default)s)"
    )
    parser.add_argument(
        "--on-bad-sample",
        choices=ON_BAD_SAMPLE,
        default="error",
        help=f"stop at a sample that cannot be used, or leave it out and list it in {LEFT_OUT} (default: %(default)s)",
    )
    parser.add_argument(
        "--duplicate-ids",
        choices=DUPLICATE_IDS,
        default="error",
        help="an id seen before makes a bad sample, or gets a number, as in id#2 (default: %(default)s)",
    )
    parsed = parser.parse_args(arguments)
    if parsed.samples_per_shard < 1:
        parser.error(f"argument --samples-per-shard: must be at least 1, not {parsed.samples_per_shard}")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 when the data set was written, 1 when it could not be (the reason is on stderr)."""
    args = parse_arguments(arguments)
    try:
        tokenizer = load_tokenizer(args.tokenizer)
        samples = LlavaJson(args.json, args.images, args.source, args.duplicate_ids)
        info = write_shards(
            samples,
            args.output,
            tokenizer=tokenizer,
            template=args.template,
            geometry=ImageGeometry(),
            samples_per_shard=args.samples_per_shard,
            on_bad_sample=args.on_bad_sample,
            total=len(samples),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    left_out = f"; {info['left_out']} left out, see {args.output / LEFT_OUT}" if info["left_out"] else ""
    print(
        f"wrote {info['samples']} samples with {info['images']} images and {info['text_tokens']} text tokens in "
        f"{len(info['shard_bytes'])} shards to {args.output}{left_out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
