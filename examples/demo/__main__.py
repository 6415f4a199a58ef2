"""A web page that asks a released model about pictures and shows what its samplers keep, and what that saves."""

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from megatron_focus.inference.options import add_machine_options
from megatron_focus.program import run_program

EXAMPLE = """\
example:
  python -m examples.demo quickstart/release --examples quickstart/data
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, see ``--help``."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m examples.demo", None, __doc__, EXAMPLE, formatter_class=form)
    parser.add_argument("release", type=Path, help="folder that tools/export_hf.py wrote")
    parser.add_argument(
        "--examples",
        type=Path,
        metavar="FOLDER",
        help="offer pictures and questions of this folder: questions.json in LLaVA's form and images/",
    )
    parser.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N", help="(default: %(default)s)")
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    server.add_argument("--port", type=_positive, default=7860, help="(default: %(default)s)")
    server.add_argument("--share", action="store_true", help="a public address through gradio's servers, for anybody")
    add_machine_options(parser.add_argument_group("machine"))
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Serve until Ctrl-C; exit code 2 for input that cannot be used."""
    options = parse_arguments(arguments)
    if importlib.util.find_spec("gradio") is None:
        print("error: the web page needs gradio: pip install -e '.[demo]'", file=sys.stderr)
        return 2
    # Before gradio is imported, which reads the first; the second is where it keeps uploads, gone with the program.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="focus-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        # After parsing: gradio and torch take seconds to import.
        from examples.demo.asking import Asker
        from examples.demo.example_questions import example_questions
        from examples.demo.serving import serve
        from megatron_focus.inference.answering import Decoding
        from megatron_focus.inference.release_folder import default_device, load_release

        try:
            examples = [] if options.examples is None else example_questions(options.examples)
            release = load_release(options.release, options.device or default_device(), options.dtype)
            asker = Asker(release, Decoding(options.max_new_tokens))
            asker.warm_up()
            serve(asker, examples, options.host, options.port, options.share)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    run_program(main)
