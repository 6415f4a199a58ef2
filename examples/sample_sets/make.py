"""Writes a small folder of every data set, in the format that its authors publish, with images and texts of our own,
and a tokenizer for them."""

import argparse
import sys
from pathlib import Path
from random import Random

from data_pipeline.sample import Sample
from data_pipeline.sources.base import Source
from examples.sample_sets.llava_sets import (
    write_allava_vflan,
    write_llava_json,
    write_llava_pretrain,
    write_open_llava_next,
    write_sharegpt4v,
)
from examples.sample_sets.parquet_sets import write_parquet, write_synthdog_en
from examples.sample_sets.question_sets import write_ai2d, write_chartqa, write_docvqa, write_dvqa, write_geoqa_plus
from megatron_focus.program import run_program

WRITERS = {
    "llava_json": write_llava_json,
    "llava_pretrain": write_llava_pretrain,
    "sharegpt4v": write_sharegpt4v,
    "allava_vflan": write_allava_vflan,
    "docvqa": write_docvqa,
    "synthdog_en": write_synthdog_en,
    "chartqa": write_chartqa,
    "dvqa": write_dvqa,
    "ai2d": write_ai2d,
    "geoqa_plus": write_geoqa_plus,
    "parquet": write_parquet,
    "open_llava_next": write_open_llava_next,
}
OPTIONS = {"llava_json": ",file=data.json", "dvqa": ",images_limit=10,seed=1"}
"""What stands behind the folder in the source's description."""
VOCAB_SIZE = 768
EXAMPLE = "example: python -m examples.sample_sets.make --output samples"


def make(output: Path) -> dict[str, str]:
    """Write a folder for each kind into ``output``.

    Returns:
        For each kind, what ``open_source`` (and ``--source`` of tools/prepare_data.py) takes.

    Raises:
        ValueError: ``output`` is there already.
    """
    if output.exists():
        raise ValueError(f"{output}: exists already; choose another folder or remove it")
    for number, (kind, write) in enumerate(WRITERS.items()):
        write(output / kind, Random(number))
    return {kind: f"{kind}={output / kind}{OPTIONS.get(kind, '')}" for kind in WRITERS}


def make_tokenizer(sources: list[Source], folder: Path) -> None:
    """Train a small tokenizer in Llama-3's form on the texts of the data sets."""
    from data_pipeline.conversations.tokenizer import train_tokenizer  # transformers, which takes seconds

    samples = (sample for source in sources for sample in source if isinstance(sample, Sample))
    train_tokenizer([turn.text for sample in samples for turn in sample.turns], VOCAB_SIZE, folder)


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 when the folders were written, 1 when they could not be (the reason is on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m examples.sample_sets.make", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the data sets' folders to")
    options = parser.parse_args(arguments)
    try:
        from data_pipeline.sources.registry import open_source  # after parsing, as above

        sources = [open_source(spec) for spec in make(options.output).values()]
        make_tokenizer(sources, options.output / "tokenizer")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(sources)} data sets with {sum(map(len, sources))} samples, and a tokenizer, in {options.output}")
    return 0


if __name__ == "__main__":
    run_program(main)
