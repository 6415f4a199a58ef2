"""The quickstart's closing table: loss before and after, share of answers right, visual tokens kept at each stage."""

import argparse
import json
from pathlib import Path

from megatron_focus.program import run_program

EXAMPLE = "example: python -m examples.quickstart.summary --tensorboard quickstart/tensorboard --answers answers.json"
WINDOW = 10
"""Steps averaged at the beginning and at the end of the run."""


def series(folder: Path) -> dict[str, list[float]]:
    """Every scalar of a TensorBoard folder, in the order of its steps."""
    # After the command line is parsed, as it takes seconds.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def table(scalars: dict[str, list[float]], answers: dict[str, int]) -> str:
    """The table as text."""

    def first(tag: str) -> float:
        values = scalars[tag][:WINDOW]
        return sum(values) / len(values)

    def last(tag: str) -> float:
        values = scalars[tag][-WINDOW:]
        return sum(values) / len(values)

    rows = [
        ("loss, first step", f"{scalars['loss/lm'][0]:.3f}"),
        (f"loss, mean of the last {WINDOW} steps", f"{last('loss/lm'):.3f}"),
        ("balance loss, begin and end", f"{first('loss/balance'):.4f} -> {last('loss/balance'):.4f}"),
        ("questions answered exactly by the release", f"{answers['right']} of {answers['total']}"),
        ("", f"{answers['right'] / answers['total']:.1%}"),
        ("visual tokens of LLaVA-NeXT", "100.0%"),
        ("  left by the vision-guided sampler", f"{last('tokens/kept by vision sampler'):.1%}"),
        ("  of these left by the text-guided sampler", f"{last('tokens/kept by text sampler'):.1%}"),
        ("  effective over all layers", f"{last('tokens/effective'):.1%}"),
    ]
    shares = [tag for tag in scalars if tag[:7] == "scales/" and "probability" not in tag]
    rows += [(f"  regions at scale {tag.split('/')[1]}", f"{last(tag):.1%}") for tag in shares]
    rows.append(("choice of scale that lies within pictures", f"{last('choice/within-picture share'):.1%}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value:>18}" for name, value in rows)


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m examples.quickstart.summary", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--tensorboard", type=Path, required=True, help="folder of the run's TensorBoard events")
    parser.add_argument("--answers", type=Path, required=True, help="json that ask.py wrote")
    options = parser.parse_args(arguments)
    print(table(series(options.tensorboard), json.loads(options.answers.read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    run_program(main)
