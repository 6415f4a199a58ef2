import json
import tarfile
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import webdataset

from data_pipeline.conversations.conversation import Turn
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.dataset.manifest import SCHEMA
from data_pipeline.dataset.shard_reader import sample_digest
from data_pipeline.preparation.part import part_file, read_summary
from data_pipeline.preparation.plan import plan_shards
from data_pipeline.preparation.shard_writer import ShardWriter
from data_pipeline.sample import ImageBytes, Sample, sample_key
from data_pipeline.sources.llava_json import LlavaJson


@pytest.fixture
def source(llava_folder):
    return LlavaJson(llava_folder / "data.json", llava_folder / "images", "llava")


@pytest.fixture
def writer(tokenizer, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "shards").mkdir()
    renderer = Renderer(tokenizer, "llama3")
    return ShardWriter(folder=tmp_path, renderer=renderer, max_image_pixels=10**6, on_bad_sample="skip")


@pytest.fixture
def written(writer, source, tmp_path):
    """The shard of samples 3 to 12: text only and two images among them."""
    shard = replace(plan_shards([source], 10)[0], begin=3, end=13)
    reports = []
    writer.write(shard, source, reports.append)
    assert reports == [None] * 10
    return shard, tmp_path / shard.tar, [source[index] for index in range(3, 13)]


def test_webdataset_reads_the_shard(written):
    """The format is WebDataset's own: its reader gives the same bytes."""
    _, tar, samples = written
    read = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [entry["__key__"] for entry in read] == [f"llava-{index:09d}" for index in range(3, 13)]
    assert [len(sample.images) for sample in samples] == [1, 1, 0, 1, 1, 1, 1, 1, 2, 1]
    for entry, sample in zip(read, samples, strict=True):
        assert json.loads(entry["json"]) == {
            "id": sample.id,
            "source": "llava",
            "turns": [{"role": turn.role, "text": turn.text} for turn in sample.turns],
        }
        images = [entry[key] for key in sorted(entry) if key[0].isdigit()]
        assert images == [image.read() for image in sample.images]


def test_manifest_rows_say_where_the_members_lie(written, tmp_path, tokenizer):
    """The places against Python's own reader of tar files, the rest against what was written."""
    shard, tar, samples = written
    table = pq.read_table(part_file(tmp_path, shard))
    assert table.schema.remove_metadata().equals(SCHEMA)
    with tarfile.open(tar) as members:
        places = {(member.offset_data, member.size): member.name for member in members}
        assert len(places) == len(members.getnames()) == 20
        assert all(member.mtime == 0 and member.isreg() for member in members)
    content = tar.read_bytes()
    for number, (row, sample) in enumerate(zip(table.to_pylist(), samples, strict=True), start=3):
        assert row["key"] == sample_key("llava", sample.id)
        assert (row["id"], row["source"], row["shard"]) == (sample.id, "llava", "shards/llava-000000.tar")
        assert places[row["json_offset"], row["json_size"]] == f"llava-{number:09d}.json"
        image_places = list(zip(row["image_offset"], row["image_size"], strict=True))
        suffix = {"JPEG": "jpg", "PNG": "png"}
        names = [f"llava-{number:09d}.{i}.{suffix[format]}" for i, format in enumerate(row["format"])]
        assert [places[place] for place in image_places] == names
        assert [content[at : at + size] for at, size in image_places] == [image.read() for image in sample.images]
        text = content[row["json_offset"] :][: row["json_size"]]
        assert row["sha256"] == sample_digest(text, [image.read() for image in sample.images])
        encoded = Renderer(tokenizer, "llama3").render(sample.turns)
        assert (row["images"], row["text_tokens"]) == (len(sample.images), len(encoded.tokens))
        assert row["loss_tokens"] == encoded.loss.sum()
    summary = read_summary(tmp_path, shard)
    assert (summary.samples, summary.shard_bytes, summary.left_out) == (10, len(content), [])
    assert list((tmp_path / "parts").iterdir()) == [part_file(tmp_path, shard)]


@pytest.mark.parametrize("damage", ["missing", "shorter"])
def test_part_without_its_tar_is_not_complete(written, tmp_path, damage):
    shard, tar, _ = written
    tar.unlink() if damage == "missing" else tar.write_bytes(tar.read_bytes()[:-512])
    assert read_summary(tmp_path, shard) is None


class Replaced:
    """A source with some samples replaced."""

    def __init__(self, source, samples):
        self.source, self.samples, self.name = source, samples, source.name

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.samples.get(index, self.source[index])


def bad_samples(image_bytes):
    turns = (Turn("user", "<image>\nWhat is this?"), Turn("assistant", "A cat."))

    def sample(number, data):
        return Sample(
            id=f"bad{number}", source="llava", images=(ImageBytes("table.parquet: row 7", data),), turns=turns
        )

    return {
        1: sample(1, image_bytes(200, 200)[:3000]),
        2: sample(2, b""),
        4: sample(4, image_bytes(1001, 1000)),
        5: sample(5, b"<html>not found</html>"),
    }


def test_bad_samples_are_left_out_with_reasons(writer, source, image_bytes, tmp_path):
    shard = plan_shards([source], 10)[0]
    reports = []
    writer.write(shard, Replaced(source, bad_samples(image_bytes)), reports.append)
    summary = read_summary(tmp_path, shard)
    assert [report for report in reports if report] == summary.left_out
    assert [(sample.id, sample.reason) for sample in summary.left_out] == [
        ("bad1", "truncated image"),
        ("bad2", "empty image"),
        ("bad4", "too many pixels"),
        ("bad5", "not an image"),
    ]
    assert all(f"sample '{sample.id}' of llava: " in sample.message for sample in summary.left_out)
    assert "table.parquet: row 7" in summary.left_out[0].message
    kept = [report is None for report in reports]
    assert kept == [index not in (1, 2, 4, 5) for index in range(10)] and summary.samples == 6


def test_bad_sample_stops(writer, source, image_bytes, tmp_path):
    writer = replace(writer, on_bad_sample="error")
    with pytest.raises(ValueError, match=r"sample 'bad1' of llava: image table\.parquet: row 7: "):
        writer.write(plan_shards([source], 10)[0], Replaced(source, bad_samples(image_bytes)), lambda _: None)
    assert not list((tmp_path / "parts").iterdir()) and not list((tmp_path / "shards").iterdir())


def test_nothing_to_learn_is_a_bad_sample(writer, source, tokenizer, tmp_path):
    class Masked(Renderer):
        def render(self, turns):
            encoded = super().render(turns)
            encoded.loss[1:] = False
            return encoded

    writer = replace(writer, renderer=Masked(tokenizer, "llama3"))
    shard = plan_shards([source], 10)[0]
    writer.write(shard, source, lambda _: None)
    summary = read_summary(tmp_path, shard)
    assert {sample.reason for sample in summary.left_out} == {"no label"} and len(summary.left_out) == 10
    assert (summary.samples, summary.shard_bytes) == (0, 0)
    assert not list((tmp_path / "shards").iterdir()), "no tar without a sample"
