"""Draws what the two samplers do to one picture for some questions: scales of the windows, and the tokens kept."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from examples.quickstart.ask import Release
from megatron_focus.program import run_program

if TYPE_CHECKING:
    from megatron_focus.inference.selection_picture import AnsweredQuestion

EXAMPLE = """\
example:
  python -m examples.quickstart.picture --release quickstart/release --image quickstart/data/images/astronaut.png \\
      --question "What colour is the suit?" "Which name stands first on the round patch?" --output focus.png
"""


def ask_and_draw(release: Release, picture: Image.Image, questions: list[str], out: Path) -> "list[AnsweredQuestion]":
    """Ask a release, and draw what its samplers chose for each question."""
    import torch  # after the command line is parsed, as below: it takes seconds

    from megatron_focus.inference.selection_picture import AnsweredQuestion, draw_picture

    inputs = release.inputs(picture, [[("user", question)] for question in questions])
    with torch.no_grad():
        selections = release.model(**inputs, output_selection=True, logits_to_keep=1).selection
    answers = release.answer(inputs)
    asked = [AnsweredQuestion(*fields) for fields in zip(questions, answers, selections, strict=True)]
    draw_picture(picture, asked, out)
    return asked


def main(arguments: list[str] | None = None) -> int:
    """Run; prints the answers and where the picture is."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.quickstart.picture",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--release", type=Path, required=True, help="folder that tools/export_hf.py wrote")
    parser.add_argument("--image", type=Path, required=True, help="the picture")
    parser.add_argument("--question", nargs="+", required=True, help="questions about it; two fit well")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    options = parser.parse_args(arguments)
    from megatron_focus.inference.image_source import open_picture

    picture = open_picture(str(options.image))
    asked = ask_and_draw(Release(options.release), picture, options.question, options.output)
    for answered in asked:
        print(f"{answered.question}  {answered.answer}")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    run_program(main)
