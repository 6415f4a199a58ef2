"""Asks an exported release the quickstart's questions, or one of your own, with transformers alone."""

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from megatron_focus.program import run_program

EXAMPLES = """\
examples:
  python -m examples.quickstart.ask --release quickstart/release --data quickstart/data --output answers.json
  python -m examples.quickstart.ask --release quickstart/release --image cat.jpg --question "What colour are the eyes?"
"""


class Question(NamedTuple):
    """One question with what was said before it."""

    id: str
    image: str | None
    history: list[tuple[str, str]]
    text: str
    answer: str


class Release:
    """A released model with its processor."""

    def __init__(self, folder: Path):
        import torch  # after the command line is parsed, as it takes seconds
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
        self.model = model.to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        self.processor.tokenizer.padding_side = "left"  # answers begin where the prompts end

    def inputs(self, image: Image.Image | None, chats: list[list[tuple[str, str]]]) -> Any:
        """Model inputs of (role, text) conversations that all begin with the same picture, if any."""
        messages = []
        for chat in chats:
            turns: list[Any] = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in chat]
            if image is not None:
                turns[0]["content"].insert(0, {"type": "image", "image": image})
            messages.append(turns)
        form = {"tokenize": True, "return_dict": True, "processor_kwargs": {"padding": True, "return_tensors": "pt"}}
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, **form).to(self.device)

    def answer(self, inputs: Any) -> list[str]:
        """What the model says to each row, by greedy decoding."""
        ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=32)
        said = self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in said]


def read_questions(file: Path) -> list[Question]:
    """Every question of a LLaVA json file; later ones with the true answers to those before."""
    questions = []
    for row in json.loads(file.read_text(encoding="utf-8")):
        said = [turn["value"].replace("<image>", "").strip() for turn in row["conversations"]]
        for turn in range(0, len(said), 2):
            history = list(zip(("user", "assistant") * turn, said[:turn], strict=False))
            name = row["id"] if turn == 0 else f"{row['id']}, turn {turn // 2 + 1}"
            questions.append(Question(name, row.get("image"), history, said[turn], said[turn + 1]))
    return questions


def ask_all(release: Release, data: Path) -> dict[str, Any]:
    """Ask every question of a data set, the questions about one picture together, and compare the answers exactly."""
    questions = sorted(read_questions(data / "questions.json"), key=lambda question: question.image or "")
    wrong = []
    with tqdm(total=len(questions), unit="question") as progress:
        for name, group in groupby(questions, key=lambda question: question.image):
            asked = list(group)
            image = Image.open(data / "images" / name) if name else None
            inputs = release.inputs(image, [[*question.history, ("user", question.text)] for question in asked])
            for question, said in zip(asked, release.answer(inputs), strict=True):
                if said != question.answer:
                    fields = {"id": question.id, "question": question.text, "expected": question.answer}
                    wrong.append(fields | {"answered": said})
                progress.update()
    return {"total": len(questions), "right": len(questions) - len(wrong), "wrong": wrong}


def main(arguments: list[str] | None = None) -> int:
    """Run; 1 when a smaller share than asked for was answered exactly."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m examples.quickstart.ask", None, __doc__, EXAMPLES, formatter_class=form)
    parser.add_argument("--release", type=Path, required=True, help="folder that tools/export_hf.py wrote")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--data", type=Path, help="folder that make_dataset.py wrote: ask all its questions")
    either.add_argument("--question", help="ask this alone")
    parser.add_argument("--output", type=Path, help="json file for the results of --data")
    parser.add_argument("--at-least", type=float, default=0.95, help="share that must be right (default: %(default)s)")
    parser.add_argument("--image", type=Path, help="the picture that --question is about (default: none)")
    options = parser.parse_args(arguments)
    if (options.output if options.data is None else options.image) is not None:
        parser.error("--image goes with --question, --output with --data")
    release = Release(options.release)
    if options.question is not None:
        from transformers.image_utils import load_image  # slow, as above

        image = load_image(str(options.image)) if options.image else None
        print(release.answer(release.inputs(image, [[("user", options.question)]]))[0])
        return 0
    results = ask_all(release, options.data)
    for row in results["wrong"]:
        print(f"{row['id']:<28} {row['question']:<52} expected {row['expected']!r}, answered {row['answered']!r}")
    share = results["right"] / results["total"]
    print(f"answered {results['right']} of {results['total']} exactly ({100 * share:.1f} %)")
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0 if share >= options.at_least else 1


if __name__ == "__main__":
    run_program(main)
