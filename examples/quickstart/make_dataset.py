"""Makes the quickstart's training set: photographs that ship in scikit-image and the questions in questions.json."""

import argparse
import json
import shutil
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from data_pipeline.conversations.chat_templates import IMAGE_TOKEN, SYSTEM_MESSAGES
from megatron_focus.program import run_program

QUESTIONS = Path(__file__).with_name("questions.json")
VOCAB_SIZE = 768
EXAMPLE = "example: python -m examples.quickstart.make_dataset --output quickstart/data"


def copy_photographs(names: list[str], folder: Path) -> None:
    """Copy files of scikit-image's data folder, byte for byte.

    Raises:
        ValueError: naming the file that the installed scikit-image does not have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, start=1):
        with as_file(files("skimage.data") / name) as path:
            if not path.is_file():
                raise ValueError(f"{path}: no such file; scikit-image 0.26 has it")
            shutil.copyfile(path, folder / name)
        print(f"[{number:2d}/{len(names)}] {name}")


def tokenizer_texts(rows: list[dict[str, Any]]) -> list[str]:
    """What the tokenizer learns its merges from: every turn, and the words that the chat template adds."""
    turns = [turn["value"].replace(IMAGE_TOKEN, "") for row in rows for turn in row["conversations"]]
    # The template's words stand in every conversation, so they are worth as many merges.
    return turns + [SYSTEM_MESSAGES["llama3"], "system", "user", "assistant"] * len(rows)


def make_dataset(out: Path) -> dict[str, Any]:
    """Write ``images/``, ``questions.json``, ``tokenizer/`` and ``shards/`` to ``out``.

    Returns:
        What ``shards/dataset.json`` holds.

    Raises:
        ValueError: ``out`` has shards already, or a photograph is missing.
    """
    # After the command line is parsed: these import torch, which takes seconds.
    from data_pipeline.conversations.rendering import Renderer
    from data_pipeline.conversations.tokenizer import train_tokenizer
    from data_pipeline.preparation.prepare import prepare
    from data_pipeline.sources.llava_json import LlavaJson

    if (out / "shards").exists():
        raise ValueError(f"{out / 'shards'}: exists already; choose another folder or remove it")
    rows = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    copy_photographs(sorted({row["image"] for row in rows if "image" in row}), out / "images")
    shutil.copyfile(QUESTIONS, out / "questions.json")
    tokenizer = train_tokenizer(tokenizer_texts(rows), VOCAB_SIZE, out / "tokenizer")
    source = LlavaJson(out / "questions.json", out / "images", "quickstart")
    info = prepare([source], out / "shards", renderer=Renderer(tokenizer, "llama3"))
    assert info is not None, "one task writes all shards"
    return info


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 when the data set was written, 1 when it could not be (the reason is on stderr)."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.quickstart.make_dataset", description=__doc__, epilog=EXAMPLE
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write the data set to")
    options = parser.parse_args(arguments)
    try:
        info = make_dataset(options.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"wrote {info['samples']} conversations, {info['images']} of them with a photograph, "
        f"{info['text_tokens']} text tokens, to {options.output}"
    )
    return 0


if __name__ == "__main__":
    run_program(main)
