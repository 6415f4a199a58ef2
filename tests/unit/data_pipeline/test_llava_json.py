import json

import pytest

from data_pipeline.sample import BadSample, Sample, sample_key
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


def read(folder, records, name="data.json", **options):
    lines = name.endswith(".jsonl")
    text = "\n".join(json.dumps(record) for record in records) if lines else json.dumps(records)
    (folder / name).write_text(text)
    return list(LlavaJson(folder / name, folder / "images", "set", **options))


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_good_samples(folder, name):
    two = [{"from": "human", "value": "<image> and <image>"}, {"from": "gpt", "value": "Two."}]
    samples = read(
        folder,
        [
            {"id": "one", "image": "a.jpg", "conversations": LOOK},
            {"id": 2, "conversations": TALK},
            {"id": "three", "image": ["sub/b.jpg", "sub/../a.jpg"], "conversations": two},
            {"id": "four", "image": None, "conversations": TALK},
        ],
        name,
    )
    assert all(isinstance(sample, Sample) for sample in samples)
    assert [sample.id for sample in samples] == ["one", "2", "three", "four"]
    assert [len(sample.images) for sample in samples] == [1, 0, 2, 0]
    assert samples[2].images == (folder / "images/sub/b.jpg", folder / "images/a.jpg")
    assert [turn.role for turn in samples[0].turns] == ["user", "assistant"]
    assert samples[0].source == "set"


BAD = {
    "missing image": ({"image": "c.jpg"}, "key image: 'c.jpg' is not a file in {folder}/images"),
    "escaping image": ({"image": "sub/../../secret.jpg"}, "key image: 'sub/../../secret.jpg' leaves the image folder"),
    "absolute image": ({"image": "/etc/passwd"}, "key image: '/etc/passwd' leaves the image folder {folder}/images"),
    "image is a folder": ({"image": "sub"}, "key image: 'sub' is not a file"),
    "image is a number": ({"image": 3}, "key image: expected a path or a list of paths, not 3"),
    "image is empty": ({"image": [""]}, "key image: expected a path or a list of paths, not ''"),
    "count": ({"image": ["a.jpg", "a.jpg"]}, "key conversations: 1 <image> in the questions, but 2 images"),
    "role": (
        {"conversations": [{"from": "bot", "value": "x"}]},
        "key conversations[0].from: expected human or gpt, not 'bot'",
    ),
    "no answer": ({"conversations": LOOK[:1]}, "key conversations[0]: the last question has no answer: '<image>"),
    "no conversation": ({"conversations": None}, "key conversations: expected a list of turns, not None"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sample_names_file_id_key_and_value(name, folder):
    change, message = BAD[name]
    good = {"id": "x7", "image": "a.jpg", "conversations": LOOK}
    before, bad, after = read(folder, [good | {"id": "x6"}, good | change, good | {"id": "x8"}])
    assert isinstance(before, Sample) and isinstance(after, Sample)
    assert isinstance(bad, BadSample) and bad.id == "x7" and bad.source == "set"
    assert bad.reason.startswith(f"{folder}/data.json: sample 'x7' (entry 1): ")
    assert message.format(folder=folder) in bad.reason


def test_sample_without_usable_id(folder):
    bad = read(folder, [{"conversations": TALK}, {"id": True}, [1], {"id": ""}])
    assert [sample.id for sample in bad] == ["entry 0", "entry 1", "entry 2", "entry 3"]
    assert bad[0].reason == f"{folder}/data.json: entry 0: key id: expected a text or a whole number, not None"
    assert "not True" in bad[1].reason and "expected an object, not list" in bad[2].reason and "not ''" in bad[3].reason


def test_duplicate_ids(folder):
    records = [{"id": id, "conversations": TALK} for id in ("a", "a", "a#3", "b", "a")]
    samples = read(folder, records)
    assert [isinstance(sample, Sample) for sample in samples] == [True, False, True, True, False]
    assert "data.json: sample 'a' (entry 1): key id: 'a' was seen before" in samples[1].reason
    numbered = read(folder, records, duplicate_ids="number")
    assert [sample.id for sample in numbered] == ["a", "a#2", "a#3", "b", "a#4"]


def test_broken_json_names_line_and_column(folder):
    file = folder / "data.json"
    file.write_text('[\n  {"id": "a"},\n  {"id": }\n]')
    with pytest.raises(ValueError, match=rf"{file}: line 3 column 10: broken JSON: Expecting value"):
        LlavaJson(file, folder / "images", "set")
    file = folder / "data.jsonl"
    file.write_text('{"id": "a", "text": "line\u2028separator"}\n\n{"id": \n')
    with pytest.raises(ValueError, match=rf"{file}: line 3 column \d+: broken JSON"):
        LlavaJson(file, folder / "images", "set")


def test_wrong_files(folder):
    (folder / "data.json").write_text('{"id": "a"}')
    with pytest.raises(ValueError, match=r"data\.json: expected a list of samples, not dict"):
        LlavaJson(folder / "data.json", folder / "images", "set")
    with pytest.raises(ValueError, match=r"other\.json: no such file"):
        LlavaJson(folder / "other.json", folder / "images", "set")
    with pytest.raises(ValueError, match=r"image folder .*/pictures: no such folder"):
        LlavaJson(folder / "data.json", folder / "pictures", "set")
    (folder / "data.json").write_bytes(b"[\xff]")
    with pytest.raises(ValueError, match=r"data\.json: not UTF-8 text"):
        LlavaJson(folder / "data.json", folder / "images", "set")


def test_sample_keys_are_stable():
    assert sample_key("llava", "s0") == 8148402042854892814
    assert 0 <= sample_key("a", "b") < 2**63
    assert sample_key("a", "b") != sample_key("b", "a")
