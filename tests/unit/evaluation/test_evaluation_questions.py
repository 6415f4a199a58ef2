"""Files of questions: both forms, and rows that cannot be asked."""

import json

import pytest

from megatron_focus.evaluation.metrics.registry import METRICS
from megatron_focus.evaluation.questions import BadQuestion, read_questions

ROWS = [
    {"question_id": "a", "text": "what?", "image": "x/one.png", "answer": "cat", "category": "ignored"},
    {"question_id": "a", "text": "how many?", "answers": ["2", {"answer": "two"}, 2]},
    {"question_id": 7, "text": "compare\nthem", "image": ["one.png", "two.png"], "answer": 3.5},
]


@pytest.mark.parametrize("form", ["lines", "list"])
def test_both_forms(tmp_path, form):
    file = tmp_path / "q.json"
    lines = "\n\n".join(json.dumps(row) for row in ROWS)
    file.write_text(lines + "\n" if form == "lines" else json.dumps(ROWS, indent=1))
    first, second, third = read_questions(file, METRICS["exact"])
    assert (first.index, first.id, first.text, first.images, first.answers) == (
        0,
        "a",
        "what?",
        ("x/one.png",),
        ("cat",),
    )
    assert (second.index, second.id, second.images, second.answers) == (1, "a", (), ("2", "two", "2"))
    assert (third.images, third.answers, third.text) == (("one.png", "two.png"), ("3.5",), "compare\nthem")
    where = "line 5" if form == "lines" else "entry 3"
    assert third.place == f"{file}, {where}, question 7"


GOOD = {"question_id": 1, "text": "what?", "answer": "A"}


@pytest.mark.parametrize(
    ("row", "metric", "message"),
    [
        ("{", "exact", "line 2: not JSON"),
        ("[1]", "exact", "line 2: is [1], not an object"),
        ({"text": "a", "answer": "b"}, "exact", "question_id is None"),
        (GOOD | {"text": " "}, "exact", "line 2, question 1: text is ' '"),
        (GOOD | {"answers": ["a"]}, "exact", "needs one of answer and answers"),
        ({"question_id": 1, "text": "a", "answers": []}, "exact", "answers is empty"),
        ({"question_id": 1, "text": "a", "answers": [{"said": "a"}]}, "exact", "answers is [None]"),
        (GOOD | {"answer": True}, "exact", "answer is [True]"),
        (GOOD | {"image": 3}, "exact", "image is 3"),
        (GOOD | {"image": "../secret.png"}, "exact", "image '../secret.png' must be a name inside"),
        (GOOD | {"image": ["/etc/a.png"]}, "exact", "image '/etc/a.png' must be a name inside"),
        (GOOD, "vqa", "the answers of 10 people, here are 1"),
        (GOOD, "choice", "options: metric choice needs from 2 to 26, here are 0"),
        (GOOD | {"options": ["x", "y"], "answer": "C"}, "choice", "answer 'C' is neither a letter of AB nor"),
        (GOOD | {"options": "xy"}, "choice", "options is 'xy'"),
    ],
)
def test_bad_rows_keep_their_place(tmp_path, row, metric, message):
    file = tmp_path / "q.jsonl"
    full = GOOD | {"answers": ["A"] * 10} if metric == "vqa" else GOOD | {"options": ["x", "y"]}
    if metric == "vqa":
        del full["answer"]
    file.write_text(f"{json.dumps(full)}\n{row if isinstance(row, str) else json.dumps(row)}\n{json.dumps(full)}\n")
    first, bad, last = read_questions(file, METRICS[metric])
    assert isinstance(bad, BadQuestion) and bad.index == 1
    assert bad.reason.startswith(f"{file}, line 2") and message in bad.reason
    assert not isinstance(first, BadQuestion) and last.index == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "has no question"), ("[]", "has no question"), ("[{", "not JSON"), (None, "cannot be read")],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    file = tmp_path / "q.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_questions(file, METRICS["exact"])
    assert str(file) in str(error.value)
