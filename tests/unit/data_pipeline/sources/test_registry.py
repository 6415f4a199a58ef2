import json

import pytest

from data_pipeline.sources.registry import KINDS, open_source, options_of

TALK = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "talk.jsonl").write_text(json.dumps({"id": 1, "conversations": TALK}))
    return tmp_path


def test_options_reach_the_source(folder):
    source = open_source(f"llava_json={folder},file=talk.jsonl,images=pictures,name=mine")
    assert (source.name, len(source), source[0].id) == ("mine", 1, "1")


BAD = {
    "llava_json": "expected kind=folder or kind=folder,option=value",
    "llava_json=": "expected kind=folder or kind=folder,option=value",
    "llava={folder}": "unknown kind 'llava', expected one of llava_json, llava_pretrain, ",
    "llava_json={folder}": "llava_json needs file=...",
    "llava_json={folder},file=talk.jsonl,image=pictures": "unknown option 'image=pictures' of llava_json",
    "llava_json={folder},file": "unknown option 'file' of llava_json, which has file, images, name",
    "llava_json={folder},file=a,file=b": "option file is given twice",
    "llava_json={folder},file=other.json,images=pictures": "other.json: cannot be read",
    "llava_json={folder},file=talk.jsonl": "image folder {folder}/images: no such folder",
    "dvqa={folder},images_limit=many": "option images_limit: expected a whole number, not 'many'",
    "docvqa={folder}": "{folder}: expected train/train_v1.0.json or ",
    "docvqa={folder},file=talk.jsonl": "file=talk.jsonl: not known to this kind, expected one of train/",
    "docvqa={folder},file=train_v1.0.json": "{folder}: expected train_v1.0.json, found none",
    "chartqa={folder}/none": "data set folder {folder}/none: no such folder",
    "sharegpt4v={folder}": "{folder}: expected sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json or ",
}


@pytest.mark.parametrize("spec", BAD)
def test_bad_specs_are_named(spec, folder):
    filled = spec.format(folder=folder)
    with pytest.raises(ValueError) as caught:
        open_source(filled)
    assert str(caught.value).startswith(f"source {filled!r}: ")
    assert BAD[spec].format(folder=folder) in str(caught.value)


def test_every_kind_can_be_renamed_and_refuses_a_missing_folder():
    for kind in KINDS:
        assert options_of(kind)["name"].default == kind
        with pytest.raises(ValueError, match="nowhere"):
            open_source(f"{kind}=nowhere" + (",file=a.json" if kind == "llava_json" else ""))
