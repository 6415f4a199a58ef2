"""Turn published weights into a checkpoint that training starts from."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from megatron_focus.config.schema import RunConfig
from megatron_focus.program import run_program

if TYPE_CHECKING:
    from megatron_focus.conversion.importing import Imported

EXAMPLE = """\
examples:
  python tools/import_hf.py --llm models/Meta-Llama-3-8B-Instruct --vision models/clip-vit-large-patch14-336 \\
      --tokenizer tokenizers/llama-3 --output pretrained/llama-3 --write-config pretrained/llama-3.yaml
  python tools/import_hf.py --model models/llava-v1.6-mistral-7b-hf --tokenizer tokenizers/mistral \\
      --output pretrained/mistral model.vision_sampler.window=4
"""
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def main(arguments: list[str] | None = None) -> int:
    """Import; exit code 2 for input that cannot be imported or an output that cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python tools/import_hf.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--llm", type=Path, help="folder of a Llama, Qwen2 or Mistral model; goes with --vision")
    parser.add_argument("--vision", type=Path, help="folder of a CLIP ViT, or of a whole CLIP model")
    parser.add_argument("--model", type=Path, help="instead: folder of a LLaVA-NeXT (llava-hf) or of a release")
    parser.add_argument("--tokenizer", type=Path, help="from tools/prepare_tokenizer.py (default: the one in --model)")
    parser.add_argument("--output", type=Path, required=True, help="folder to create, for checkpoint.pretrained")
    parser.add_argument("--write-config", type=Path, help="YAML file to create, for a run's key 'base'")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the weights (default: each keeps its own)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings the folders leave open")
    options = parser.parse_intermixed_args(arguments)
    tokenizer = options.tokenizer or options.model
    if (options.model is None) == (options.llm is None) or (options.llm is None) != (options.vision is None):
        parser.error("give --llm and --vision, or --model alone")
    if tokenizer is None:
        parser.error("--llm needs --tokenizer; tools/prepare_tokenizer.py makes one from the language model's")
    try:
        if options.write_config is not None:  # before hours of work
            if options.write_config.exists():
                raise ValueError(f"{options.write_config} exists; name a new file")
            options.write_config.parent.mkdir(parents=True, exist_ok=True)
        imported = _import(options, tokenizer)
        if options.write_config is not None:
            options.write_config.write_text(base_config(imported.config), encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    language = imported.config.model.language
    print(
        f"wrote {options.output}: {imported.parameters / 1e6:,.1f} M parameters, vocabulary of {language.vocab_size} "
        f"({imported.new_rows} new)"
    )
    if imported.created:
        print(f"initialised, as the source has none: {', '.join(imported.created)}")
    return 0


def _import(options: argparse.Namespace, tokenizer: Path) -> "Imported":
    # After parsing: torch and Megatron take seconds to import.
    import torch

    from megatron_focus.conversion.import_sources import language_model_and_tower, whole_model
    from megatron_focus.conversion.importing import import_model

    return import_model(
        whole_model(options.model) if options.model else language_model_and_tower(options.llm, options.vision),
        tokenizer,
        options.output,
        options.overrides,
        dtype=getattr(torch, DTYPES[options.dtype]) if options.dtype else None,
        progress=not options.quiet,
    )


def base_config(config: RunConfig) -> str:
    """What the import decided, as YAML that a run's file inherits from with ``base``."""
    container = OmegaConf.structured(config)
    keys = ("data.tokenizer", "data.chat_template", "data.max_sequence_length", "training.precision")
    chosen = OmegaConf.create({"model": container.model})
    for key in (*keys, "checkpoint.pretrained"):
        OmegaConf.update(chosen, key, OmegaConf.select(container, key))
    return OmegaConf.to_yaml(chosen)


if __name__ == "__main__":
    run_program(main)
