"""Bad input of the sets with formats of their own."""

import json
import shutil

import pytest

from data_pipeline.sample import BadSample, Sample
from data_pipeline.sources.prompts import multiple_choice
from data_pipeline.sources.registry import open_source


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def only_bad(source):
    bad = [sample for sample in source if isinstance(sample, BadSample)]
    assert len(bad) == 1 and sum(isinstance(sample, Sample) for sample in source) == len(source) - 1
    return bad[0]


DOCVQA = {
    "no answers": (lambda record: record.pop("answers"), "no answer", "key answers: expected a list of answers"),
    "empty answer": (lambda record: record.update(answers=[" "]), "no answer", r"key answers[0]: expected a text"),
    "answer is no number": (lambda record: record.update(answers=[float("nan")]), "no answer", "not nan"),
    "answer is true": (lambda record: record.update(answers=[True]), "no answer", "not True"),
    "no question": (lambda record: record.update(question=None), "no question", "key question: expected a text"),
    "image in a question": (
        lambda record: record.update(question="What is <image>?"),
        "image count mismatch",
        "2 <image> in the questions, but 1 images",
    ),
}


@pytest.mark.parametrize("name", DOCVQA)
def test_docvqa_record(name, copied):
    change, reason, message = DOCVQA[name]
    folder, spec = copied("docvqa")
    edit(folder / "spdocvqa_qas/train_v1.0_withQT.json", lambda content: change(content["data"][3]))
    bad = only_bad(open_source(spec))
    assert bad.reason == reason and message in bad.message
    assert bad.message.startswith(f"{folder}/spdocvqa_qas/train_v1.0_withQT.json: image '{bad.id}' (first at entry ")


@pytest.mark.parametrize("value", [None, 7, "../secret.png", "/etc/passwd", "documents/none.png", "\ud800"])
def test_docvqa_image(value, copied):
    folder, spec = copied("docvqa")
    file = folder / "spdocvqa_qas/train_v1.0_withQT.json"
    edit(file, lambda content: content["data"].insert(0, content["data"][0] | {"image": value}))
    bad = only_bad(open_source(spec))
    unnamed = value is None or value in (7, "\ud800")
    assert bad.id == ("entry 0" if unnamed else value)
    missing = "missing image" if value == "documents/none.png" else "bad image path"
    assert bad.reason == ("bad record" if unnamed else missing)


@pytest.mark.parametrize(
    "layout",
    ["train/train_v1.0.json", "train_v1.0.json", "train/train_v1.0_withQT.json", "train_v1.0_withQT.json"],
)
def test_docvqa_first_release(layout, copied, tmp_path):
    folder, spec = copied("docvqa")
    expected = [sample.turns for sample in open_source(spec)]
    file = tmp_path / "old" / layout
    file.parent.mkdir(parents=True)
    shutil.move(folder / "spdocvqa_qas/train_v1.0_withQT.json", file)
    shutil.move(folder / "spdocvqa_images", file.parent / "documents")
    assert [sample.turns for sample in open_source(f"docvqa={tmp_path / 'old'}")] == expected


def test_chartqa_needs_both_files(copied):
    folder, spec = copied("chartqa")
    edit(folder / "train/train_augmented.json", lambda content: content.append({"imgname": "x.png", "query": "?"}))
    (folder / "train/png/x.png").write_bytes(b"x")
    bad = only_bad(open_source(spec))
    assert bad.id == "x.png" and bad.reason == "no answer" and "train_augmented.json: image 'x.png'" in bad.message
    (folder / "train/train_augmented.json").unlink()
    with pytest.raises(ValueError, match=r"train_augmented\.json: cannot be read"):
        open_source(spec)


def test_dvqa_bad_answer(copied):
    folder, spec = copied("dvqa")
    edit(folder / "train_qa.json", lambda content: content[0].update(answer=[]))
    bad = only_bad(open_source(spec))
    assert bad.id == "bar_train_00000001.png" and bad.reason == "no answer"
    with pytest.raises(ValueError, match="expected a count of at least 1, not 0"):
        open_source(f"{spec},images_limit=0")


AI2D = {
    "answer out of range": ({"correctAnswer": 4}, "no answer", "answer 4 is none of the 4 options"),
    "negative answer": ({"correctAnswer": -1}, "no answer", "answer -1 is none"),
    "answer as a text": ({"correctAnswer": "3"}, "no answer", "expected the index of an option, not '3'"),
    "no options": ({"answerTexts": []}, "bad options", "expected 1 to 26 options, not 0"),
    "options as a text": ({"answerTexts": "abcd"}, "bad options", "expected a list of options, not 'abcd'"),
    "empty option": ({"answerTexts": ["a", "", "c", "d"]}, "bad options", "key options[1]: expected a text"),
}


@pytest.mark.parametrize("name", AI2D)
def test_ai2d_question(name, copied):
    change, reason, message = AI2D[name]
    folder, spec = copied("ai2d")
    file = folder / "questions/3.png.json"
    edit(file, lambda content: content["questions"]["What comes after egg?"].update(change))
    bad = only_bad(open_source(spec))
    assert bad.id == "3.png-0" and bad.reason == reason
    assert bad.message.startswith(f"{file}: question '3.png-0': ") and message in bad.message


def test_ai2d_files(copied):
    folder, spec = copied("ai2d")
    (folder / "images/1.png").unlink()
    assert only_bad(open_source(spec)).reason == "missing image"
    shutil.rmtree(folder / "abc_images")
    with pytest.raises(ValueError, match=r"abc_images: no such folder; .*abc_questions=leave_out"):
        open_source(spec)
    source = open_source(f"{spec},abc_questions=leave_out")
    assert len(source) == 5 and source.published is None
    (folder / "ai2d_test_ids.csv").unlink()
    with pytest.raises(ValueError, match=r"ai2d_test_ids\.csv: cannot be read .*split=all"):
        open_source(f"{spec},abc_questions=leave_out")
    for option, message in {"split=test": "expected one of train, all", "abc_questions=no": "expected use"}.items():
        with pytest.raises(ValueError, match=message):
            open_source(f"{spec},{option}")
    (folder / "questions/0.png.json").write_text('{"imageName": "0.png", "questions": [1]}')
    with pytest.raises(ValueError, match=r"0\.png\.json: key questions: expected an object of objects"):
        open_source(f"{spec},abc_questions=leave_out,split=all")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": ', r"line 1 column 8: broken JSON"),
        ("[" * 100_000, "line 1 column 1: broken JSON: nested too deeply"),
        ("[]", "expected an object, not list"),
        (b"\xff", "not UTF-8 text"),
    ],
)
def test_broken_problem_file(text, message, copied):
    folder, spec = copied("geoqa_plus")
    (folder / "json/4.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"json/4\.json: {message}"):
        open_source(spec)


def test_geoqa_without_a_label_and_in_order_of_numbers(copied):
    folder, spec = copied("geoqa_plus")
    shutil.copy(folder / "json/3.json", folder / "json/10.json")
    shutil.copy(folder / "image/3.png", folder / "image/10.png")
    edit(folder / "json/10.json", lambda content: content.pop("label"))
    source = open_source(spec)
    bad = only_bad(source)
    assert bad.id == "3#2" and bad.reason == "no answer" and source[8] == bad and source.renamed == 1


def test_multiple_choice_letters():
    question, answer = multiple_choice("Which?", [f"option {number}" for number in range(26)], 25)
    assert "\nZ. option 25\n" in question["value"] and answer["value"] == "Z"


def write_metadata(folder, records):
    (folder / "page.jpg").write_bytes(b"x")
    lines = [json.dumps({"file_name": "page.jpg"} | record) for record in records]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return open_source(f"synthdog_en={folder}")


def truth(text):
    return {"ground_truth": json.dumps({"gt_parse": {"text_sequence": text}})}


def test_synthdog_metadata_beside_the_images(tmp_path):
    source = write_metadata(tmp_path, [truth("First page."), truth("Second page.")])
    assert [sample.turns[1].text for sample in source] == ["First page.", "Second page."]
    assert [sample.id for sample in source] == ["page.jpg", "page.jpg#2"]
    assert source[0].images[0].path == tmp_path / "page.jpg" and source.published == 29_765


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"ground_truth": '{"gt_parse"'}, "broken json"),
        ({"ground_truth": "[" * 100_000}, "broken json"),
        ({"ground_truth": None}, "broken json"),
        ({"ground_truth": "[]"}, "no answer"),
        ({"ground_truth": '{"gt_parse": []}'}, "no answer"),
        (truth("  "), "no answer"),
        (truth("text") | {"file_name": "../page.jpg"}, "bad image path"),
        (truth("text") | {"file_name": "other.jpg"}, "missing image"),
        (truth("text") | {"file_name": None}, "bad image path"),
    ],
)
def test_synthdog_bad_record(record, reason, tmp_path):
    bad = only_bad(write_metadata(tmp_path, [truth("First page."), record]))
    assert bad.reason == reason
    assert f"metadata.jsonl: sample {bad.id!r} (entry 1): key " in bad.message and len(bad.message) < 500
