import json

import pytest

from data_pipeline.sample import BadSample, ImageFile, Sample, sample_key
from data_pipeline.sources.base import number_duplicates
from data_pipeline.sources.llava_json import LlavaJson

TALK = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]
LOOK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"x")
    (tmp_path / "secret.jpg").write_bytes(b"x")
    return tmp_path


def open_records(folder, records, name="data.json"):
    lines = name.endswith(".jsonl")
    text = "\n".join(json.dumps(record) for record in records) if lines else json.dumps(records)
    (folder / name).write_text(text)
    return LlavaJson(folder / name, folder / "images", "set")


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_good_samples(folder, name):
    two = [{"from": "human", "value": "<image> and <image>"}, {"from": "gpt", "value": "Two."}]
    source = open_records(
        folder,
        [
            {"id": "one", "image": "a.jpg", "conversations": LOOK},
            {"id": 2, "conversations": TALK},
            {"id": "three", "image": ["sub/b.jpg", "sub/../a.jpg"], "conversations": two},
            {"id": "four", "image": None, "conversations": TALK},
        ],
        name,
    )
    samples = list(source)
    assert all(isinstance(sample, Sample) for sample in samples)
    assert [sample.id for sample in samples] == ["one", "2", "three", "four"]
    assert [len(sample.images) for sample in samples] == [1, 0, 2, 0]
    assert samples[2].images == (ImageFile(folder / "images/sub/b.jpg"), ImageFile(folder / "images/a.jpg"))
    assert [turn.role for turn in samples[0].turns] == ["user", "assistant"]
    assert samples[0].source == source.name == "set" and source.published is None


BAD = {
    "missing image": ({"image": "c.jpg"}, "missing image", "key image: 'c.jpg' is not a file in {folder}/images"),
    "escaping image": ({"image": "sub/../../secret.jpg"}, "bad image path", "secret.jpg' leaves the image folder"),
    "absolute image": ({"image": "/etc/passwd"}, "bad image path", "leaves the image folder {folder}/images"),
    "image is a folder": ({"image": "sub"}, "missing image", "key image: 'sub' is not a file"),
    "image is a number": ({"image": 3}, "bad image path", "expected a path or a list of paths, not 3"),
    "image is empty": ({"image": [""]}, "bad image path", "expected a path or a list of paths, not ''"),
    "image has a zero byte": ({"image": "a\0.jpg"}, "bad image path", r"expected a path or a list of paths"),
    "count": ({"image": ["a.jpg", "a.jpg"]}, "image count mismatch", "1 <image> in the questions, but 2 images"),
    "role": (
        {"conversations": [{"from": "bot", "value": "x"}]},
        "unknown role",
        "key conversations[0].from: expected human or gpt, not 'bot'",
    ),
    "no answer": ({"conversations": LOOK[:1]}, "no answer", "the last question has no answer: '<image>"),
    "no conversation": ({"conversations": None}, "no conversation", "expected a list of turns, not None"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sample_names_file_id_key_and_value(name, folder):
    change, reason, message = BAD[name]
    good = {"id": "x7", "image": "a.jpg", "conversations": LOOK}
    before, bad, after = open_records(folder, [good | {"id": "x6"}, good | change, good | {"id": "x8"}])
    assert isinstance(before, Sample) and isinstance(after, Sample)
    assert isinstance(bad, BadSample) and bad.id == "x7" and bad.source == "set"
    assert bad.reason == reason
    assert bad.message.startswith(f"{folder}/data.json: sample 'x7' (entry 1): ")
    assert message.format(folder=folder) in bad.message


def test_sample_without_usable_id(folder):
    bad = list(open_records(folder, [{"conversations": TALK}, {"id": True}, [1], {"id": ""}, {"id": "\ud800"}]))
    assert [sample.id for sample in bad] == ["entry 0", "entry 1", "entry 2", "entry 3", "entry 4"]
    assert [sample.reason for sample in bad] == ["no id", "no id", "bad record", "no id", "no id"]
    assert bad[0].message == f"{folder}/data.json: entry 0: key id: expected a text or a whole number, not None"
    assert "not True" in bad[1].message and "expected an object, not list" in bad[2].message


def test_duplicate_ids_are_numbered(folder):
    source = open_records(folder, [{"id": id, "conversations": TALK} for id in ("a", "a", "a#3", "b", "a", "a#2")])
    assert [sample.id for sample in source] == ["a", "a#2", "a#3", "b", "a#4", "a#2#2"]
    assert [source.id(index) for index in range(6)] == [sample.id for sample in source]
    assert source.renamed == 3
    # The same prefix gets the same names, whatever follows.
    assert number_duplicates(["a", "a", "a#3"]) == (["a", "a#2", "a#3"], 1)


def test_random_access_equals_iteration(folder):
    source = open_records(folder, [{"id": number, "conversations": TALK} for number in range(9)])
    assert [source[index] for index in (8, 3, 0)] == [list(source)[index] for index in (8, 3, 0)]
    for index in (-1, 9):
        with pytest.raises(IndexError, match=f"set: no sample {index} among 9"):
            source[index]


def test_wrong_folders_and_names(folder):
    open_records(folder, [])
    with pytest.raises(ValueError, match=r"other\.json: cannot be read"):
        LlavaJson(folder / "other.json", folder / "images", "set")
    with pytest.raises(ValueError, match=r"image folder .*/pictures: no such folder"):
        LlavaJson(folder / "data.json", folder / "pictures", "set")
    for name in ("", "a/b", "../a", "a b"):
        with pytest.raises(ValueError, match=f"name '{name}': expected letters"):
            LlavaJson(folder / "data.json", folder / "images", name)


def test_sample_keys_are_stable():
    assert sample_key("llava", "s0") == 8148402042854892814
    assert 0 <= sample_key("a", "b") < 2**63
    assert sample_key("a", "b") != sample_key("b", "a")
