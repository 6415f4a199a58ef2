"""Ask a release every question of a benchmark and score the answers.

Killed or interrupted, the same command goes on where it was.
"""

import argparse
import sys
from pathlib import Path

from megatron_focus.evaluation.metrics.registry import METRICS
from megatron_focus.evaluation.questions import ON_BAD_QUESTION
from megatron_focus.inference.options import add_machine_options
from megatron_focus.program import run_program

EXAMPLE = """\
questions, a JSON line each (or one JSON list), in a layout of this tool's own; text is asked as it stands:
  {"question_id": 7, "image": "a.jpg", "text": "What is the brand?\\nAnswer with a word.", "answers": ["nous", ...]}
  {"question_id": 8, "text": "Which is a fruit?\\nA. fig\\nB. fir", "options": ["fig", "fir"], "answer": "A"}

examples:
  python tools/evaluate.py release --questions questions.jsonl --images photos --metric vqa --output results/mine
  python tools/evaluate.py release --questions charts.json --images charts --metric relaxed --batch-size 8 \\
      --gamma 0.7 --output results/charts-0.7 --task 3 --tasks 16
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, see ``--help``."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python tools/evaluate.py", None, __doc__, EXAMPLE, formatter_class=form)
    parser.add_argument("release", type=Path, help="folder that tools/export_hf.py wrote")
    parser.add_argument("--questions", type=Path, required=True, help="file of questions")
    parser.add_argument("--images", type=Path, help="folder in which the questions' images lie")
    parser.add_argument("--metric", choices=METRICS, required=True, help="how answers are scored")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, or to go on with")
    parser.add_argument("--name", help="of the benchmark, in results.json (default: the output folder's)")
    parser.add_argument("--task", type=int, default=0, help="with --tasks: which part of the work this is, from 0")
    parser.add_argument(
        "--tasks",
        type=int,
        default=1,
        help="share the questions among as many commands, on any machines that see the folders; "
        "the one that finds all answered writes results.json (%(default)s)",
    )
    parser.add_argument(
        "--on-bad-question",
        choices=ON_BAD_QUESTION,
        default="error",
        help="stop at a question that cannot be asked, or list it and count it as 0 (%(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="questions at a time (%(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="an answer's longest (%(default)s)")
    add_machine_options(parser)
    samplers = parser.add_argument_group("samplers (default: as trained)")
    samplers.add_argument("--gamma", type=float, help="share of the importance that is kept; 1 keeps all")
    samplers.add_argument("--text-layer", type=int, metavar="I", help="drop before this layer, counted from 0")
    samplers.add_argument("--no-vision-sampler", action="store_true", help="all tokens of LLaVA-NeXT")
    samplers.add_argument("--no-text-sampler", action="store_true", help="drop nothing inside the language model")
    args = parser.parse_args(arguments)
    if args.no_text_sampler and not (args.gamma is None and args.text_layer is None):
        parser.error("--gamma and --text-layer do not go with --no-text-sampler")
    for name in ("tasks", "batch_size", "max_new_tokens"):
        if (value := getattr(args, name)) < 1:
            parser.error(f"argument --{name.replace('_', '-')}: must be at least 1, not {value}")
    if not 0 <= args.task < args.tasks:
        parser.error(f"argument --task: must be from 0 to {args.tasks - 1} with --tasks {args.tasks}, not {args.task}")
    return args


def run(args: argparse.Namespace) -> str:
    """Evaluate as the command line asks; a line for its user."""
    # After parsing: torch and transformers take seconds to import.
    from megatron_focus.evaluation.part import Part
    from megatron_focus.evaluation.run import Evaluation, evaluate
    from megatron_focus.inference.release_folder import default_device

    changed = args.gamma is not None or args.text_layer is not None  # also where the model was trained without
    evaluation = Evaluation(
        release=args.release,
        questions=args.questions,
        metric=args.metric,
        output=args.output,
        name=args.name or args.output.resolve().name,
        device=args.device or default_device(),
        dtype=args.dtype,
        gamma=args.gamma,
        text_layer=args.text_layer,
        vision_sampler=False if args.no_vision_sampler else None,
        text_sampler=False if args.no_text_sampler else True if changed else None,
        part=Part(
            images=args.images,
            batch_size=args.batch_size,
            max_new_tokens=args.max_new_tokens,
            on_bad_question=args.on_bad_question,
            task=args.task,
            tasks=args.tasks,
        ),
    )
    return evaluate(evaluation)


def main(arguments: list[str] | None = None) -> int:
    """Run; exit code 2 for input that cannot be used."""
    args = parse_arguments(arguments)
    try:
        line = run(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk or storage that is away: worth another try
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with {args.output}", file=sys.stderr)
        return 1
    print(line)
    return 0


if __name__ == "__main__":
    run_program(main)
