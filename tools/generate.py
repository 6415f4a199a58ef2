"""Ask a released model about pictures, once or in a chat, and see what its samplers kept."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_focus.inference.chat_commands import HELP
from megatron_focus.inference.options import add_machine_options
from megatron_focus.program import run_program

if TYPE_CHECKING:
    from megatron_focus.inference.answering import Answer, Decoding
    from megatron_focus.inference.conversation import Turn
    from megatron_focus.inference.release_folder import Release

EXAMPLES = f"""\
examples:
  python tools/generate.py release --image cat.jpg --prompt "What colour are the eyes?"
  python tools/generate.py release --image https://example.com/map.png --prompt "Which city?" --show-selection kept.png
  python tools/generate.py release --image cat.jpg --gamma 0.6 --text-layer 4

Without --prompt a chat begins:
{HELP}
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, see ``--help``."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=form)
    parser.add_argument("release", type=Path, help="folder that tools/export_hf.py wrote")
    parser.add_argument("--prompt", help="ask this and end (default: chat)")
    parser.add_argument("--image", nargs="+", default=[], metavar="PATH", help="pictures, paths or http(s) addresses")
    parser.add_argument(
        "--show-selection",
        type=Path,
        metavar="PNG",
        help="draw what was kept of each picture; of several to PNG-1.png and so on; in a chat after every answer",
    )
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--max-new-tokens", type=_positive, default=512, metavar="N", help="(default: %(default)s)")
    decoding.add_argument("--temperature", type=float, default=0.0, help="sample; 0 is greedy (default: %(default)s)")
    decoding.add_argument("--seed", type=int, help="of the samples; goes with --temperature (default: a random one)")
    samplers = parser.add_argument_group("samplers (default: as trained)")
    samplers.add_argument("--gamma", type=float, help="share of the importance that is kept; 1 keeps all")
    samplers.add_argument("--text-layer", type=int, metavar="I", help="drop before this layer, counted from 0")
    samplers.add_argument("--scales", nargs="+", metavar="KERNEL", help="some of the trained scales, such as 1x1 2x2")
    samplers.add_argument("--no-vision-sampler", action="store_true", help="all tokens of LLaVA-NeXT")
    samplers.add_argument("--no-text-sampler", action="store_true", help="drop nothing inside the language model")
    add_machine_options(parser.add_argument_group("machine"))
    options = parser.parse_args(arguments)
    if options.no_text_sampler and not (options.gamma is None and options.text_layer is None):
        parser.error("--gamma and --text-layer do not go with --no-text-sampler")
    if options.no_vision_sampler and options.scales is not None:
        parser.error("--scales does not go with --no-vision-sampler")
    if options.temperature < 0:
        parser.error(f"argument --temperature: must not be below 0, not {options.temperature}")
    if options.seed is not None and not options.temperature:
        parser.error("--seed goes with --temperature: without it the answer is always the same")
    if options.prompt is not None and not options.prompt.strip():
        parser.error("argument --prompt: is empty")
    if options.show_selection is not None:
        if options.show_selection.suffix.lower() != ".png":
            parser.error(f"argument --show-selection: {options.show_selection} must end in .png")
        if not options.show_selection.absolute().parent.is_dir():
            parser.error(f"argument --show-selection: no folder {options.show_selection.parent}")
        if options.prompt is not None and not options.image:
            parser.error("--show-selection needs --image")
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def set_samplers(release: "Release", options: argparse.Namespace) -> None:
    """Set the samplers as the command line asks.

    Raises:
        ValueError: naming what the model cannot be set to.
    """
    if options.text_layer is not None or options.gamma is not None:
        text: bool | None = True  # also where the model was trained without
    else:
        text = False if options.no_text_sampler else None
    release.model.set_samplers(
        gamma=options.gamma,
        text_layer=options.text_layer,
        scales=options.scales,
        vision=False if options.no_vision_sampler else None,
        text=text,
    )


def ask(release: "Release", decoding: "Decoding", pictures_to: Path | None, turns: "list[Turn]") -> "Answer":
    """Write the answer to the last turn while it comes, then one line about it, then the pictures of the selection."""
    from megatron_focus.inference.answering import answer

    given = answer(release, turns, decoding, partial(print, end="", flush=True))
    print(flush=True)
    print(given.summary(), file=sys.stderr)
    if pictures_to is not None:
        draw(turns, given, pictures_to)
    return given


def draw(turns: "list[Turn]", given: "Answer", out: Path) -> None:
    """Draw what was kept of each picture of a conversation."""
    from megatron_focus.inference.selection_picture import AnsweredQuestion, draw_picture

    pictures = [picture for turn in turns for picture in turn.pictures]
    for number, (picture, selection) in enumerate(zip(pictures, given.selection, strict=True), start=1):
        file = out if len(pictures) == 1 else out.with_stem(f"{out.stem}-{number}")
        draw_picture(picture, [AnsweredQuestion(turns[-1].text, given.text, selection)], file)
        print(f"wrote {file}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Answer; exit code 2 for input that cannot be used."""
    options = parse_arguments(arguments)
    # After parsing, as above: torch and transformers take seconds to import.
    import torch

    from megatron_focus.inference.answering import Decoding
    from megatron_focus.inference.chat import Chat, talk, typed_lines
    from megatron_focus.inference.conversation import Turn
    from megatron_focus.inference.image_source import open_picture
    from megatron_focus.inference.release_folder import default_device, load_release

    try:
        pictures = [open_picture(source) for source in options.image]  # first, because loading a model takes long
        release = load_release(options.release, options.device or default_device(), options.dtype)
        set_samplers(release, options)
        if options.seed is not None:
            torch.manual_seed(options.seed)
        decoding = Decoding(options.max_new_tokens, options.temperature)
        asker = partial(ask, release, decoding, options.show_selection)
        if options.prompt is None:
            talk(Chat(asker, pictures), typed_lines())
        else:
            asker([Turn("user", options.prompt, tuple(pictures))])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_program(main)
