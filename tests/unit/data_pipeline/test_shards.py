import json
import os
import signal
import tarfile

import pyarrow.parquet as pq
import pytest
import webdataset

from data_pipeline.config import ImageGeometry
from data_pipeline.conversation import render
from data_pipeline.manifest import Manifest
from data_pipeline.sample import BadSample, sample_key
from data_pipeline.shards import ShardReader, write_shards
from data_pipeline.sources.llava_json import LlavaJson


@pytest.fixture
def source(llava_folder):
    return LlavaJson(llava_folder / "data.json", llava_folder / "images", "llava")


@pytest.fixture
def write(tokenizer):
    def call(samples, folder, **options):
        return write_shards(
            samples, folder, tokenizer=tokenizer, template="llama3", geometry=ImageGeometry(), **options
        )

    return call


def test_every_sample_is_read_back_unchanged(prepared, source, tokenizer):
    manifest = Manifest.load(prepared)
    reader = ShardReader(manifest)
    reader.MAX_OPEN = 2  # fewer than the five shards, so that files are closed and opened again
    samples = list(source)
    for index in [*range(len(samples)), *reversed(range(len(samples)))]:
        stored = reader.read(index)
        assert stored.images == [path.read_bytes() for path in samples[index].images]
        assert tuple(stored.turns) == samples[index].turns
        assert manifest.id(index) == samples[index].id
        assert manifest.keys[index] == sample_key("llava", samples[index].id)
        encoded = render(samples[index].turns, tokenizer, "llama3")
        assert manifest.text_tokens[index] == len(encoded.tokens)
        assert manifest.loss_tokens[index] == encoded.loss.sum()
    reader.close()


def test_webdataset_reads_the_shards(prepared, source):
    """The format is WebDataset's own: its reader gives the same bytes."""
    samples = list(source)
    shards = sorted(str(path) for path in prepared.glob("shard-*.tar"))
    assert len(shards) == 5
    read = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert [json.loads(entry["json"])["id"] for entry in read] == [sample.id for sample in samples]
    for entry, sample in zip(read, samples, strict=True):
        images = [entry[key] for key in sorted(entry) if key[0].isdigit()]
        assert images == [path.read_bytes() for path in sample.images]


def test_dataset_json_counts(prepared, source):
    info = json.loads((prepared / "dataset.json").read_text())
    samples = list(source)
    assert info["samples"] == len(samples) == 24 and info["sources"] == {"llava": 24}
    assert info["images"] == sum(len(sample.images) for sample in samples)
    assert info["chat_template"] == "llama3" and info["left_out"] == 0
    table = pq.read_table(prepared / "manifest.parquet")
    assert info["text_tokens"] == sum(table["text_tokens"].to_pylist())
    assert info["loss_tokens"] == sum(table["loss_tokens"].to_pylist())
    assert table["images"].to_pylist() == [len(sample.images) for sample in samples]
    assert not (prepared / "left_out.jsonl").exists()
    for name, size in info["shard_bytes"].items():
        assert (prepared / name).stat().st_size == size


def test_same_input_gives_the_same_files(prepared, source, write, tmp_path):
    write(source, tmp_path / "100%d", samples_per_shard=5)  # a folder name that a pattern could misread
    for path in prepared.iterdir():
        assert path.read_bytes() == (tmp_path / "100%d" / path.name).read_bytes()


def with_bad_samples(source, folder):
    samples = list(source)
    broken = folder / "broken.jpg"
    broken.write_bytes(samples[1].images[0].read_bytes()[:200])
    samples[1] = type(samples[1])(id="broken", source="llava", images=(broken,), turns=samples[1].turns)
    samples.insert(4, BadSample(id="bad", source="llava", reason="data.json: sample 'bad': key image: 'x' is missing"))
    samples.append(samples[0])
    return samples


def test_bad_sample_stops(source, write, tmp_path):
    with pytest.raises(ValueError, match=r"sample 'broken' of llava: image .*/broken\.jpg: "):
        write(with_bad_samples(source, tmp_path), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jpg"]


def test_bad_samples_are_skipped_counted_and_listed(source, write, tmp_path):
    info = write(with_bad_samples(source, tmp_path), tmp_path / "out", on_bad_sample="skip")
    assert info["samples"] == 23 and info["left_out"] == 3
    left_out = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in left_out] == ["broken", "bad", "s0"]
    assert "broken.jpg" in left_out[0]["reason"] and left_out[1]["reason"].endswith("'x' is missing")
    assert left_out[2]["reason"] == "sample 's0' of llava: key id: occurs twice in the data set"
    manifest = Manifest.load(tmp_path / "out")
    assert len(manifest) == 23 and "broken" not in manifest.ids.to_pylist()


def test_nothing_left_is_an_error(write, tmp_path):
    bad = BadSample(id="bad", source="llava", reason="why")
    with pytest.raises(ValueError, match="no sample to write: 1 were left out; the first: why"):
        write([bad], tmp_path / "out", on_bad_sample="skip")
    assert not any(tmp_path.iterdir())


def test_existing_folder_is_not_touched(source, write, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"/out: exists already"):
        write(source, tmp_path / "out")


def test_killed_while_writing(prepared, source, write, tmp_path):
    """A killed run leaves no data set behind, and the next run is as if it had not been."""

    def until_killed():
        for number, sample in enumerate(source):
            if number == 13:
                os.kill(os.getpid(), signal.SIGKILL)
            yield sample

    child = os.fork()
    if child == 0:
        write(until_killed(), tmp_path / "out", samples_per_shard=5)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    write(source, tmp_path / "out", samples_per_shard=5)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "dataset.json").read_bytes() == (prepared / "dataset.json").read_bytes()


def test_truncated_or_missing_shard_is_refused(damaged):
    shard = damaged / "shard-000002.tar"
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
    shard = damaged / "shard-000000.tar"
    os.chmod(shard, 0o644)
    with open(shard, "r+b") as file:
        file.seek(int(manifest.image_offset[0]) + 50)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ValueError, match=rf"{shard}: sample 's0' of llava: the bytes differ from those written"):
        reader.read(0)
    os.truncate(shard, int(manifest.image_offset[3]) + 10)
    with pytest.raises(ValueError, match=rf"{shard}: sample 's3' of llava: the shard ends \d+ bytes too early"):
        reader.read(3)


def test_members_lie_where_the_manifest_says(prepared):
    """The offsets against Python's own tar reader."""
    manifest = Manifest.load(prepared)
    for index in range(len(manifest)):
        with tarfile.open(prepared / manifest.shard_names[manifest.shard[index]]) as tar:
            offsets = {member.offset_data: member.size for member in tar}
        assert offsets[manifest.json_offset[index]] == manifest.json_size[index]
        for image in range(manifest.first_image[index], manifest.first_image[index + 1]):
            assert offsets[manifest.image_offset[image]] == manifest.image_size[image]
