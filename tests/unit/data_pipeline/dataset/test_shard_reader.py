import json
import os
import tarfile

import pytest

from data_pipeline.conversations.rendering import Renderer
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.shard_reader import ShardReader
from data_pipeline.errors import SampleError
from data_pipeline.sample import sample_key
from data_pipeline.sources.llava_json import LlavaJson


@pytest.fixture
def source(llava_folder):
    return LlavaJson(llava_folder / "data.json", llava_folder / "images", "llava")


def check_all(manifest, source, tokenizer):
    reader, renderer = ShardReader(manifest), Renderer(tokenizer, "llama3")
    reader.storage.MAX_OPEN = 2  # fewer than the five shards, so that files are closed and opened again
    samples = [source[index] for index in range(len(source))]
    for index in [*range(len(samples)), *reversed(range(len(samples)))]:
        stored, sample = reader.read(index), samples[index]
        assert stored.images == [image.read() for image in sample.images]
        assert tuple(stored.turns) == sample.turns
        assert manifest.id(index) == sample.id
        assert manifest.keys[index] == sample_key("llava", sample.id)
        encoded = renderer.render(sample.turns)
        assert manifest.text_tokens[index] == len(encoded.tokens)
        assert manifest.loss_tokens[index] == encoded.loss.sum()
    reader.close()


def test_every_sample_is_read_back_unchanged(prepared, source, tokenizer):
    check_all(Manifest.load(prepared), source, tokenizer)


def test_a_data_set_behind_a_url(prepared, source, tokenizer):
    """fsspec's file URL goes the way of every other protocol; HTTP and S3 are in test_storage.py."""
    manifest = Manifest.load(f"file://{prepared}")
    assert manifest.folder == f"file://{prepared}" and manifest.hash == Manifest.load(prepared).hash
    check_all(manifest, source, tokenizer)


def test_shards_may_lie_in_another_folder(prepared, source, tokenizer, tmp_path):
    """As those of a subset do."""
    for name in ("dataset.json", "manifest.parquet"):
        (tmp_path / name).write_bytes((prepared / name).read_bytes())
    info = json.loads((tmp_path / "dataset.json").read_text())
    info["shard_folder"] = os.path.relpath(prepared, tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    manifest = Manifest.load(tmp_path)
    assert manifest.shard_folder == str(prepared)
    check_all(manifest, source, tokenizer)


def test_members_lie_where_the_manifest_says(prepared):
    """The offsets against Python's own tar reader."""
    manifest = Manifest.load(prepared)
    for index in range(len(manifest)):
        with tarfile.open(prepared / manifest.shard_names[manifest.shard[index]]) as tar:
            offsets = {member.offset_data: member.size for member in tar}
        assert offsets[manifest.json_offset[index]] == manifest.json_size[index]
        for image in range(manifest.first_image[index], manifest.first_image[index + 1]):
            assert offsets[manifest.image_offset[image]] == manifest.image_size[image]


def test_truncated_or_missing_shard_is_refused(damaged):
    shard = damaged / "shards" / "llava-000002.tar"
    size = shard.stat().st_size
    os.truncate(shard, size - 5000)
    with pytest.raises(ValueError, match=rf"{shard}: has {size - 5000} bytes instead of {size}: the shard is trunc"):
        ShardReader(Manifest.load(damaged))
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard}: no such file, but the manifest lists it"):
        ShardReader(Manifest.load(damaged))


def test_damage_after_opening_names_the_sample(damaged):
    manifest = Manifest.load(damaged)
    reader = ShardReader(manifest)
    shard = damaged / "shards" / "llava-000000.tar"
    os.chmod(shard, 0o644)
    with open(shard, "r+b") as file:
        file.seek(int(manifest.image_offset[0]) + 50)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(SampleError, match=rf"{shard}: sample 's0' of llava: the bytes differ from those") as error:
        reader.read(0)
    assert error.value.reason == "changed bytes"
    os.truncate(shard, int(manifest.image_offset[3]) + 10)
    with pytest.raises(SampleError, match=rf"{shard}: sample 's3' of llava: the shard ends \d+ bytes too") as error:
        reader.read(3)
    assert error.value.reason == "truncated shard"


def test_index_and_shard_that_disagree(damaged):
    """Two shards of equal size swapped: sizes fit, contents do not."""
    first, second = (damaged / "shards" / f"llava-00000{n}.tar" for n in (0, 1))
    info = json.loads((damaged / "dataset.json").read_text())
    data = second.read_bytes()
    first.write_bytes((data + bytes(first.stat().st_size))[: first.stat().st_size])
    assert info["shard_bytes"]["shards/llava-000000.tar"] == first.stat().st_size
    with pytest.raises(SampleError, match="the bytes differ from those written"):
        ShardReader(Manifest.load(damaged)).read(0)
