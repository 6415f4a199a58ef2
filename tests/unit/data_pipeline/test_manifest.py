import json

import pytest
from PIL import Image

from data_pipeline.anyres import visual_token_count
from data_pipeline.config import ImageGeometry
from data_pipeline.conversation import render
from data_pipeline.manifest import Manifest
from data_pipeline.shards import write_shards
from data_pipeline.sources.llava_json import LlavaJson


def test_predicted_lengths(prepared, llava_folder, tokenizer, small_geometry):
    manifest = Manifest.load(prepared)
    for geometry in (small_geometry, ImageGeometry()):
        lengths = manifest.predicted_lengths(geometry)
        for index, sample in enumerate(LlavaJson(llava_folder / "data.json", llava_folder / "images", "llava")):
            expected = len(render(sample.turns, tokenizer, "llama3").tokens) - len(sample.images)
            for path in sample.images:
                with Image.open(path) as image:
                    expected += visual_token_count(image.height, image.width, geometry)
            assert lengths[index] == expected


def test_text_only_data_set(tmp_path, tokenizer):
    talk = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "conversations": talk}]))
    source = LlavaJson(tmp_path / "data.json", tmp_path, "talk")
    write_shards(source, tmp_path / "out", tokenizer=tokenizer, template="llama3", geometry=ImageGeometry())
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.predicted_lengths(ImageGeometry()).tolist() == manifest.text_tokens.tolist()


def test_changed_manifest_is_refused(damaged):
    file = damaged / "manifest.parquet"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ValueError, match=rf"{file}: SHA-256 is \w+, but dataset.json says \w+: the file was changed"):
        Manifest.load(damaged)
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file}: no such file"):
        Manifest.load(damaged)


def test_other_version_and_other_folder(damaged):
    file = damaged / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 9}))
    with pytest.raises(ValueError, match=rf"{file}: key format_version is 9, this program reads 1"):
        Manifest.load(damaged)
    file.write_text("{")
    with pytest.raises(ValueError, match=rf"{file}: broken JSON"):
        Manifest.load(damaged)
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file}: no such file; is {damaged} a folder written by"):
        Manifest.load(damaged)
