"""Turn a training checkpoint into a Hugging Face release folder.

Example:
    python tools/export_hf.py --checkpoint runs/finetune/checkpoints --output release
"""

import argparse
import sys
from pathlib import Path

import torch

from data_pipeline.conversations.tokenizer import load_tokenizer
from megatron_focus.checkpoint.state import CONFIG_FILE
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.loading import load_config
from megatron_focus.config.schema import ParallelConfig
from megatron_focus.conversion.checkpoint_reader import read_model
from megatron_focus.conversion.export import write_release
from megatron_focus.conversion.from_config import model_facts
from megatron_focus.parallel.initialize import initialize, shut_down

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(arguments: list[str] | None = None) -> int:
    """Export; exit code 2 for input that cannot be exported."""
    parser = argparse.ArgumentParser(
        description="Turn a training checkpoint, written at any parallel layout, into a Hugging Face release folder.",
        epilog="example: python tools/export_hf.py --checkpoint runs/finetune/checkpoints --output release",
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="a run's checkpoints (newest is taken) or one")
    parser.add_argument("--output", required=True, type=Path, help="folder to create")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder (default: the one the run was trained with)")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the weights (default: the run's training.precision)")
    options = parser.parse_args(arguments)
    try:
        folder = CheckpointStore(options.checkpoint).latest() or options.checkpoint
        config = load_config(folder / CONFIG_FILE)
        tokenizer_folder = options.tokenizer or config.data.tokenizer
        if tokenizer_folder is None:
            raise ValueError(f"{folder / CONFIG_FILE}: data.tokenizer is not set; give --tokenizer")
        facts = model_facts(config.model, load_tokenizer(tokenizer_folder), config.data.chat_template)
        initialize(ParallelConfig(), seed=0)
        state = read_model(folder)
        write_release(
            state, facts, tokenizer_folder, options.output, DTYPES[options.dtype or config.training.precision]
        )
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            shut_down()
    parameters = sum(tensor.numel() for tensor in state.values())
    print(f"wrote {options.output}: {parameters / 1e6:,.1f} M parameters from {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
