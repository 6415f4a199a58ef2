import json

import pytest
from PIL import Image

from data_pipeline.anyres import visual_token_count
from data_pipeline.config import ImageGeometry
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.dataset import dataset_file
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.preparation.prepare import prepare
from data_pipeline.sources.llava_json import LlavaJson


def test_lengths(prepared, llava_folder, tokenizer, small_geometry):
    manifest, renderer = Manifest.load(prepared), Renderer(tokenizer, "llama3")
    source = LlavaJson(llava_folder / "data.json", llava_folder / "images", "llava")
    for geometry in (small_geometry, ImageGeometry()):
        text, visual = manifest.text_only_tokens(), manifest.visual_tokens(geometry)
        for index in range(len(source)):
            sample, expected = source[index], 0
            for file in sample.images:
                with Image.open(file.path) as image:
                    expected += visual_token_count(image.height, image.width, geometry)
            assert visual[index] == expected
            assert text[index] == len(renderer.render(sample.turns).tokens) - len(sample.images)


def test_text_only_data_set(tmp_path, tokenizer):
    talk = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "conversations": talk}]))
    source = LlavaJson(tmp_path / "data.json", tmp_path, "talk")
    prepare([source], tmp_path / "out", renderer=Renderer(tokenizer, "llama3"), progress=False)
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.text_only_tokens().tolist() == manifest.text_tokens.tolist()
    assert manifest.visual_tokens(ImageGeometry()).tolist() == [0]


def test_changed_manifest_is_refused(damaged):
    file = damaged / "manifest.parquet"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ValueError, match=rf"{file}: SHA-256 is \w+, but dataset.json says \w+: the file was changed"):
        Manifest.load(damaged)
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file}: no such file"):
        Manifest.load(damaged)


def test_the_version_before_counts_no_changes(damaged):
    file = damaged / "dataset.json"
    info = json.loads(file.read_text()) | {"format_version": 2}
    for part in (info, *info["sources"].values()):
        del part["accepted_with_change"]
    file.write_text(json.dumps(info))
    manifest = Manifest.load(damaged)
    assert [part["accepted_with_change"] for part in (manifest.info, *manifest.info["sources"].values())] == [{}, {}]


def test_other_version_and_other_folder(damaged):
    file = damaged / "dataset.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"format_version": 9}))
    with pytest.raises(ValueError, match=rf"{file}: key format_version is 9, this program reads 2 and 3"):
        Manifest.load(damaged)
    file.write_text("{")
    with pytest.raises(ValueError, match=rf"{file}: broken JSON"):
        Manifest.load(damaged)
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file}: no such file; is {damaged} a data set that .* has finished"):
        Manifest.load(damaged)


@pytest.mark.parametrize("name", ["../secret.tar", "/etc/secret.tar", "shards/../../secret.tar"])
def test_shards_outside_their_folder_are_refused(damaged, name):
    file = damaged / "dataset.json"
    info = json.loads(file.read_text())
    info["shard_bytes"][name] = 1
    file.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=rf"{file}: key shard_bytes: '{name}' leaves the folder of the shards"):
        Manifest.load(damaged)


@pytest.mark.parametrize("key", sorted(dataset_file.KEYS))
def test_a_missing_or_wrong_key_is_named(damaged, key):
    file = damaged / "dataset.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {key: None}))
    with pytest.raises(ValueError, match=rf"{file}: key {key}: expected (a text|a whole number|an object), not None"):
        Manifest.load(damaged)
    del info[key]
    file.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=rf"{file}: there is no key {key}; prepare the data set again"):
        Manifest.load(damaged)


def test_a_missing_key_of_a_source_is_named(damaged):
    file = damaged / "dataset.json"
    for key in sorted(dataset_file.SOURCE_KEYS):
        info = json.loads((file).read_text())
        del info["sources"]["llava"][key]
        broken = damaged.with_name(f"broken-{key}")
        broken.mkdir()
        (broken / "dataset.json").write_text(json.dumps(info))
        with pytest.raises(ValueError, match=rf"dataset\.json: there is no key sources\.llava\.{key}; prepare"):
            Manifest.load(broken)
    file.write_text("[]")
    with pytest.raises(ValueError, match=rf"{file}: expected an object, not \[\]"):
        Manifest.load(damaged)


@pytest.mark.parametrize("name", ["dataset.json", "manifest.parquet"])
def test_a_file_larger_than_memory_is_named(damaged, name):
    with open(damaged / name, "r+b") as file:
        file.truncate(1 << 42)  # sparse: it takes no room on the disk
    with pytest.raises(OSError, match=rf"{damaged / name}: cannot be read \(it does not fit into memory\)"):
        Manifest.load(damaged)
