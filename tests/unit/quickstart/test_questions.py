"""The quickstart's questions, the data set made of them, and how they are asked."""

import json
from collections import Counter, defaultdict
from importlib.resources import files

import pytest
from PIL import Image

from data_pipeline.sources.llava_json import LlavaJson
from examples.quickstart import ask
from examples.quickstart.make_dataset import QUESTIONS, main, make_dataset

ROWS = json.loads(QUESTIONS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, make_dataset(folder)


def test_counts():
    turns = [len(row["conversations"]) // 2 for row in ROWS]
    per_image = Counter()
    for row, count in zip(ROWS, turns, strict=True):
        per_image[row.get("image")] += count
    assert 64 <= sum(turns) <= 76
    assert turns.count(2) >= 4
    assert per_image.pop(None) == 3
    assert 14 <= len(per_image) <= 18
    assert all(3 <= count <= 6 for count in per_image.values())


def test_every_question_has_one_short_answer():
    answers = defaultdict(set)
    for row in ROWS:
        said = [turn["value"] for turn in row["conversations"]]
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * (len(said) // 2)
        assert said[0].startswith("<image>\n") == ("image" in row)
        for question, answer in zip(said[::2], said[1::2], strict=True):
            assert 1 <= len(answer.split()) <= 6 and answer == answer.strip()
            answers[row.get("image"), question].add(answer)
            assert len(answers[row.get("image"), question]) == 1
    assert len(answers) == sum(len(row["conversations"]) // 2 for row in ROWS), "a question is asked twice of a picture"
    assert len({row["id"] for row in ROWS}) == len(ROWS)


def test_shared_questions_need_the_picture():
    answers = defaultdict(list)
    for row in ROWS:
        if "image" in row:
            answers[row["conversations"][0]["value"]].append(row["conversations"][1]["value"])
    shared = {question: given for question, given in answers.items() if len(given) > 1}
    assert all(len(set(given)) > 1 for given in shared.values())
    assert sum(map(len, shared.values())) >= 8


def test_images_ship_in_scikit_image():
    for name in {row["image"] for row in ROWS if "image" in row}:
        with Image.open(files("skimage.data") / name) as image:
            image.load()


def test_dataset_holds_the_untouched_photographs(dataset):
    folder, info = dataset
    assert info["samples"] == len(ROWS) and info["left_out"] == 0
    assert len(list(LlavaJson(folder / "questions.json", folder / "images", "quickstart"))) == len(ROWS)
    for image in (folder / "images").iterdir():
        assert image.read_bytes() == (files("skimage.data") / image.name).read_bytes()


def test_dataset_is_not_overwritten(dataset, capsys):
    folder, _ = dataset
    assert main(["--output", str(folder)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_second_question_is_asked_after_the_true_answer_to_the_first():
    question = {question.id: question for question in ask.read_questions(QUESTIONS)}["page-code, turn 2"]
    first = "Which variable does the line of code assign?"
    assert question.history == [("user", first), ("assistant", "markers")]
    assert (question.text, question.answer) == ("Which function does it call?", "np.zeros_like")


class _AnswersInOrder:
    """In a release's place: answers every question with what it was told to."""

    def __init__(self, wrong: dict[str, str]):
        self.wrong = wrong
        self.true = {(q.image, q.text): q.answer for q in ask.read_questions(QUESTIONS)}

    def inputs(self, image, chats):
        name = None if image is None else image.filename.rsplit("/", 1)[1]
        return [(name, chat[-1][1]) for chat in chats]

    def answer(self, inputs):
        return [self.wrong.get(question, self.true[name, question]) for name, question in inputs]


@pytest.mark.parametrize(("wrong", "code"), [({}, 0), ({"Is the picture in colour?": "yes"}, 1)])
def test_answers_are_compared_exactly(dataset, tmp_path, monkeypatch, capsys, wrong, code):
    folder, _ = dataset
    monkeypatch.setattr(ask, "Release", lambda path: _AnswersInOrder(wrong))
    output = tmp_path / "answers.json"
    arguments = ["--release", "r", "--data", str(folder), "--output", str(output)]
    assert ask.main(arguments) == code
    results = json.loads(output.read_text())
    total = len(ask.read_questions(QUESTIONS))
    assert results["total"] == total
    assert results["right"] == total - len(results["wrong"])
    assert len(results["wrong"]) == (10 if wrong else 0)
    share = f"{100 * results['right'] / total:.1f}"
    assert f"answered {results['right']} of {total} exactly ({share} %)" in capsys.readouterr().out
