import base64
import errno
import json
import os
from pathlib import Path

import pytest

from data_pipeline.errors import SampleError
from data_pipeline.sample import MAX_IMAGE_BYTES, BadSample, ImageFile, Sample, sample_key
from data_pipeline.sources.base import number_duplicates
from data_pipeline.sources.layout import find_image
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
    "the image folder": ({"image": "sub/.."}, "bad image path", "'sub/..' is the image folder {folder}/images"),
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
    "no placeholder": (
        {"conversations": TALK},
        "image without placeholder",
        "0 <image> in the questions, but 1 images",
    ),
    "images without placeholder": (
        {"image": None, "images": ["a.jpg"], "conversations": TALK},
        "image without placeholder",
        "0 <image> in the questions, but 1 images",
    ),
    "image and images": ({"images": ["a.jpg"]}, "bad record", "keys image and images: expected one of them"),
    "placeholder inside a line": (
        {"image": None, "conversations": [{"from": "human", "value": "What is <image>?"}, TALK[1]]},
        "image count mismatch",
        "1 <image> in the questions, but 0 images",
    ),
    "unanswered": (
        {"conversations": TALK + LOOK[:1]},
        "image in an unanswered question",
        "another <image> is in the last question, which has no answer and is dropped",
    ),
    "placeholder without image": ({"image": ""}, "image count mismatch", "1 <image> in the questions, but 0 images"),
    "video": ({"video": "a.mp4"}, "video", "key video: only images are read, not 'a.mp4'"),
    "videos": ({"videos": ["a.mp4"]}, "video", "key videos: only images are read, not ['a.mp4']"),
    "audio": ({"audio": "a.wav"}, "audio", "key audio: only images are read, not 'a.wav'"),
    "long image name": ({"image": "x" * 300 + ".jpg"}, "unreadable image", "in {folder}/images: File name too long"),
    "not base64": (
        {"image": "data:image/png;base64,a?b="},
        "bad data URI",
        "'data:image/png;base64,a?b=' is not base64",
    ),
    "other data URI": (
        {"image": "data:text/plain,hello"},
        "bad data URI",
        "expected data:...;base64,... and not 'data:",
    ),
    "no answer": ({"conversations": LOOK[:1]}, "no answer", "no answer to the last question: "),
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


def test_an_absolute_path_in_the_image_folder(folder, monkeypatch):
    """Also where the image folder is named by a relative path."""
    monkeypatch.chdir(folder)
    for images in (folder / "images", Path("images"), Path(".")):
        image = find_image(images, str(folder / "images/sub/b.jpg"), "image")
        assert image.path.samefile(folder / "images/sub/b.jpg")
    with pytest.raises(SampleError, match=r"'sub/\.\.' is the image folder"):
        find_image(Path("."), "sub/..", "image", [".png"])


def test_a_sample_without_an_id_is_named_by_its_place(folder):
    """Counted lines of .jsonl, blank ones too; entries of a list. The same in every run, whatever stands behind."""
    talk = {"conversations": TALK}
    records = [talk, talk | {"id": True}, [1], talk | {"id": "\ud800"}, talk | {"id": None, "sample_id": 7}]
    source = open_records(folder, records)
    assert [sample.id for sample in source] == [*(f"data.json:{number}" for number in range(4)), "7"]
    assert [getattr(sample, "changes", "bad") for sample in source] == [
        ("no id",),
        ("no id",),
        "bad",
        ("no id",),
        ("sample_id",),
    ]
    assert source[2].message.startswith(
        f"{folder}/data.json: sample 'data.json:2' (entry 2): expected an object, not l"
    )
    (folder / "a.jsonl").write_text("\n" + "\n\n".join(map(json.dumps, records)))
    lines = LlavaJson(folder / "a.jsonl", folder / "images", "set")
    assert [sample.id for sample in lines] == ["a.jsonl:2", "a.jsonl:4", "a.jsonl:6", "a.jsonl:8", "7"]
    assert lines[2].message.startswith(f"{folder}/a.jsonl: sample 'a.jsonl:6' (line 6): expected an object")


CHANGED = {
    "empty text": ({"image": "", "conversations": TALK}, ("empty image",)),
    "null": ({"image": None, "conversations": TALK}, ("empty image",)),
    "empty list": ({"images": [], "conversations": TALK}, ("empty image",)),
    "images": ({"images": ["a.jpg"], "conversations": LOOK}, ("images",)),
    "no video": ({"image": "a.jpg", "video": None, "videos": [], "conversations": LOOK}, ()),
    "trailing question": ({"image": "a.jpg", "conversations": LOOK + TALK[:1]}, ("trailing question dropped",)),
    "literal": ({"conversations": [{"from": "human", "value": "Is <image> a tag?"}, TALK[1]]}, ("<image> as text",)),
    "literal on a line of its own": ({"conversations": LOOK}, ("<image> as text",)),
    "all": (
        {"sample_id": "x7", "id": None, "image": "", "conversations": [*TALK, {"from": "user", "value": "?"}]},
        ("sample_id", "empty image", "user and assistant", "trailing question dropped"),
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_accepted_with_a_change(name, folder):
    change, expected = CHANGED[name]
    (sample,) = open_records(folder, [{"id": "x7"} | change])
    assert isinstance(sample, Sample), sample
    assert (sample.id, sample.changes) == ("x7", expected)
    assert len(sample.images) == sum(turn.images for turn in sample.turns)


def test_image_in_a_data_uri(folder):
    uri = "data:image/jpeg;base64," + base64.b64encode(b"the bytes").decode()
    (sample,) = open_records(folder, [{"id": "x7", "image": uri, "conversations": LOOK}])
    assert sample.images[0].read() == b"the bytes" and sample.changes == ()
    assert sample.images[0].name == f"in key image of {folder}/data.json: sample 'x7' (entry 0)"


def test_an_image_larger_than_memory(folder):
    """A sparse file takes no room on the disk."""
    with open(folder / "images/a.jpg", "wb") as file:
        file.truncate(1 << 42)
    (sample,) = open_records(folder, [{"id": "x7", "image": "a.jpg", "conversations": LOOK}])
    message = rf"image {folder}/images/a\.jpg: {1 << 42} bytes, more than {MAX_IMAGE_BYTES}"
    with pytest.raises(SampleError, match=message) as error:
        sample.images[0].read()
    assert error.value.reason == "too many bytes"


def test_a_file_that_fails_while_it_is_read_is_the_samples_fault(folder, monkeypatch):
    source = open_records(folder, [{"id": "x7", "conversations": TALK}])

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    (bad,) = source
    message = f"{folder}/data.json: sample 'x7' (entry 0): cannot be read (Input/output error)"
    assert (bad.reason, bad.message) == ("unreadable sample", message)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_a_folder_that_may_not_be_entered(folder):
    (folder / "images/sub").chmod(0)
    (bad,) = open_records(folder, [{"id": "x7", "image": "sub/b.jpg", "conversations": LOOK}])
    assert bad.reason == "unreadable image" and "'sub/b.jpg' in " in bad.message and "Permission" in bad.message


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
