"""Turn a training checkpoint, written at any parallel layout, into a Hugging Face folder."""

import argparse
import sys
from pathlib import Path

from omegaconf import OmegaConf

from megatron_focus.config.loading import load_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.conversion.formats import FORMATS, MAX_SHARD_SIZE
from megatron_focus.conversion.model_card import PARTS, CardFacts, read_results
from megatron_focus.program import run_program

EXAMPLE = """\
examples:
  python tools/export_hf.py --checkpoint runs/finetune/checkpoints --output release
  python tools/export_hf.py --checkpoint runs/finetune/checkpoints --output release --results results.json \\
      --license model=llama3 --license language-model=llama3 --license vision-tower=MIT

results.json: {"tokens_kept": {"into the language model": 0.42}, "results": {"MMBench": 67.1}}
"""
DTYPES = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}


def main(arguments: list[str] | None = None) -> int:
    """Export; exit code 2 for input that cannot be exported or an output that cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python tools/export_hf.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="a run's checkpoints (newest is taken) or one")
    parser.add_argument("--output", required=True, type=Path, help="folder to create")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder (default: the one the run was trained with)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="llava-next needs both samplers off")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the weights (default: the one they are stored in)")
    parser.add_argument("--max-shard-size", default=MAX_SHARD_SIZE, help="largest weight file (%(default)s)")
    parser.add_argument("--results", type=Path, help="JSON file for the model card")
    parser.add_argument(
        "--license", action="append", default=[], metavar="PART=LICENCE", help=f"for the card; {', '.join(PARTS)}"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    try:
        print(_export(options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _export(options: argparse.Namespace) -> str:
    """What was done, in a line."""
    # After parsing: torch and Megatron take seconds to import.
    import torch

    from data_pipeline.conversations.tokenizer import load_tokenizer
    from megatron_focus.checkpoint.saver import CONFIG_FILE
    from megatron_focus.checkpoint.store import CheckpointStore
    from megatron_focus.conversion.checkpoint_reader import CheckpointTensors
    from megatron_focus.conversion.export import write_release
    from megatron_focus.conversion.from_config import model_facts

    folder = CheckpointStore(options.checkpoint).latest() or options.checkpoint
    tensors = CheckpointTensors(folder)
    config = load_config(folder / CONFIG_FILE)
    tokenizer_folder = options.tokenizer or config.data.tokenizer
    if tokenizer_folder is None:
        raise ValueError(f"{folder / CONFIG_FILE}: data.tokenizer is not set; give --tokenizer")
    parameters = write_release(
        tensors,
        model_facts(config.model, load_tokenizer(tokenizer_folder), config.data.chat_template),
        tokenizer_folder,
        options.output,
        layout=options.format,
        dtype=getattr(torch, DTYPES[options.dtype]) if options.dtype else None,
        max_shard_size=options.max_shard_size,
        card=_card(options, config),
        progress=not options.quiet,
    )
    return f"wrote {options.output}: {parameters / 1e6:,.1f} M parameters from {folder}"


def _card(options: argparse.Namespace, config: RunConfig) -> CardFacts:
    licenses = dict(line.partition("=")[::2] for line in options.license)
    if wrong := [part for part, name in licenses.items() if part not in PARTS or not name]:
        raise ValueError(f"--license {wrong[0]}: expected PART=LICENCE with a part of {', '.join(PARTS)}")
    tokens_kept, results = read_results(options.results) if options.results is not None else ({}, {})
    return CardFacts(training=training_settings(config), tokens_kept=tokens_kept, results=results, licenses=licenses)


def training_settings(config: RunConfig) -> str:
    """The run's settings as YAML, without those that say where its files lie and how it ran on its machines."""
    chosen = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(chosen, dict)
    data = {k: v for k, v in chosen["data"].items() if k not in ("path", "cache_dir", "cache_gib", "tokenizer")}
    return OmegaConf.to_yaml({key: chosen[key] for key in ("model", "optimizer", "training")} | {"data": data})


if __name__ == "__main__":
    run_program(main)
