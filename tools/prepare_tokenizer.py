"""Give a language model's tokenizer the image token, pad token and chat template that training needs."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.conversations.chat_templates import TEMPLATE_NAMES
from megatron_focus.program import run_program

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EXAMPLE = """\
example:
  python tools/prepare_tokenizer.py --from models/Meta-Llama-3-8B-Instruct --template llama3 --output tokenizers/llama-3
"""


def prepare_tokenizer(source: Path, template: str, output: Path) -> "PreTrainedTokenizerFast":
    """Write the tokenizer to the new folder ``output``, and check that it can write conversations.

    Raises:
        ValueError: ``output`` exists, ``source`` holds no tokenizer that can be used, or the template does not suit it.
    """
    # Here, not above: transformers takes seconds to import.
    from data_pipeline.conversations.published_tokenizer import published_tokenizer
    from data_pipeline.conversations.rendering import Renderer
    from data_pipeline.conversations.tokenizer import add_image_and_pad, load_tokenizer

    if output.exists():
        raise ValueError(f"{output}: exists already; choose another folder or remove it")
    tokenizer = add_image_and_pad(published_tokenizer(source), template)
    tokenizer.name_or_path = str(source)  # for messages
    Renderer(tokenizer, template)
    tokenizer.save_pretrained(output)
    return load_tokenizer(output)


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 when the tokenizer was written, 1 when it could not be (the reason is on stderr)."""
    parser = argparse.ArgumentParser(
        prog="python tools/prepare_tokenizer.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, help="folder with tokenizer.json or tokenizer.model"
    )
    parser.add_argument("--template", choices=TEMPLATE_NAMES, default="llama3", help="chat template (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist yet")
    options = parser.parse_args(arguments)
    try:
        tokenizer = prepare_tokenizer(options.source, options.template, options.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"wrote {options.output}: {len(tokenizer)} tokens, {tokenizer.image_token} is {tokenizer.image_token_id}, "
        f"{tokenizer.pad_token} is {tokenizer.pad_token_id}; tools/import_hf.py makes room for them in the model"
    )
    return 0


if __name__ == "__main__":
    run_program(main)
