"""A small release, asked by the demo, and pictures in the form of its examples."""

import json

import numpy as np
import pytest
from PIL import Image

from examples.demo.asking import Asker
from megatron_focus.inference.answering import Decoding
from megatron_focus.inference.release_folder import load_release
from tests.unit.release import tiny_models as tiny

QUESTIONS = {"one.png": ["name it", "what is this?"], "two.png": ["and this?"]}


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory):
    """A release, and a folder of examples."""
    place = tmp_path_factory.mktemp("demo")
    tiny.write_release(place / "release")
    (place / "data/images").mkdir(parents=True)
    for name, size in {"one.png": (61, 97, 3), "two.png": (150, 40, 3)}.items():
        pixels = np.random.default_rng(size[0]).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(place / "data/images" / name)
    said = [(name, question) for name, questions in QUESTIONS.items() for question in questions]
    rows = [
        {"id": str(index), "image": name, "conversations": _turns(f"<image>\n{question}")}
        for index, (name, question) in enumerate(said)
    ]
    rows.append({"id": "text", "conversations": _turns("hello")})
    (place / "data/questions.json").write_text(json.dumps(rows))
    return place


def _turns(question: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "a cat"}]


@pytest.fixture(scope="session")
def demo_release(demo_folder):
    release = load_release(demo_folder / "release", "cpu")
    # Words, because text is streamed word by word; no end, so that every answer has as many tokens.
    allowed = set(tiny.TOKENIZER.encode("abc ", add_special_tokens=False))
    release.model.generation_config.suppress_tokens = [token for token in range(tiny.VOCAB) if token not in allowed]
    return release


@pytest.fixture(scope="session")
def asker(demo_release):
    return Asker(demo_release, Decoding(16))


@pytest.fixture(scope="session")
def picture_file(demo_folder):
    return demo_folder / "data/images/one.png"
