import json
import shutil
from math import comb

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipeline.conversations.rendering import Renderer
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.shard_reader import ShardReader
from data_pipeline.preparation.prepare import prepare
from data_pipeline.preparation.subset import _draw, draw_subset
from data_pipeline.sources.llava_json import LlavaJson


@pytest.fixture
def whole(llava_folder, tokenizer, tmp_path):
    """48 samples of two sources in 10 shards."""
    files = (llava_folder / "data.json", llava_folder / "images")
    sources = [LlavaJson(*files, "llava", published=25), LlavaJson(*files, "other")]
    folder = tmp_path / "whole"
    prepare(sources, folder, renderer=Renderer(tokenizer, "llama3"), samples_per_shard=5, progress=False)
    return folder


def test_manifest_and_counts(whole, tmp_path):
    info = draw_subset(whole, tmp_path / "new" / "part", samples=13, seed=3)
    assert info == json.loads((tmp_path / "new" / "part" / "dataset.json").read_text())
    rows = pq.read_table(tmp_path / "new" / "part" / "manifest.parquet").to_pylist()
    originals = pq.read_table(whole / "manifest.parquet").to_pylist()
    assert len(rows) == 13 and [row for row in originals if row in rows] == rows  # unchanged, in the same order
    for column in ("images", "text_tokens", "loss_tokens"):
        assert info[column] == sum(row[column] for row in rows)
    counts = {name: sum(row["source"] == name for row in rows) for name in ("llava", "other")}
    assert info["samples"] == 13 and {name: info["sources"][name]["samples"] for name in counts} == counts
    original = json.loads((whole / "dataset.json").read_text())
    assert info["shard_bytes"].keys() == {row["shard"] for row in rows}
    assert info["shard_bytes"].items() <= original["shard_bytes"].items()
    assert info["subset_of"] == {"manifest_sha256": original["manifest_sha256"], "samples": 48, "seed": 3}
    assert info["shard_folder"] == "../../whole"
    names = {path.name for path in (tmp_path / "new").rglob("*")}
    assert names == {"part", "dataset.json", "manifest.parquet", "left_out.jsonl"}, "no shard, nothing left behind"


def test_samples_are_read_from_the_original_shards(whole, tmp_path):
    """Also by a subset of a subset, and after both folders were moved together."""
    draw_subset(whole, tmp_path / "part", samples=20, seed=0)
    draw_subset(tmp_path / "part", tmp_path / "part_of_part", samples=7, seed=0)
    (tmp_path / "moved").mkdir()
    for name in ("whole", "part_of_part"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    original, part = (Manifest.load(tmp_path / "moved" / name) for name in ("whole", "part_of_part"))
    assert part.info["shard_folder"] == "../whole"
    names = [(source, id) for source, id in zip(original.source.tolist(), original.ids.to_pylist(), strict=True)]
    for index in range(len(part)):
        source = original.source_names.index(part.source_names[part.source[index]])
        assert ShardReader(part).read(index) == ShardReader(original).read(names.index((source, part.id(index))))


def test_seed_decides(whole, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw_subset(whole, tmp_path / name, samples=12, seed=seed)
    a, b, c = ((tmp_path / name / "manifest.parquet").read_bytes() for name in "abc")
    assert a == b != c


def test_draw_is_pinned():
    """A change here would silently change published subsets."""
    assert _draw(20, 6, 1234).tolist() == [3, 5, 7, 10, 16, 18]


def test_draw_is_uniform():
    """Every subset of 2 out of 6 is as probable as any other."""
    draws, subsets = 6000, comb(6, 2)
    counts = np.zeros((6, 6), dtype=int)
    for seed in range(draws):
        first, second = _draw(6, 2, seed)
        counts[first, second] += 1
    counts = counts[np.triu_indices(6, 1)]
    assert counts.sum() == draws  # ascending, without repetition
    # 400 expected in each, standard deviation sqrt(6000 * 1/15 * 14/15) = 19.3; five of them.
    assert np.abs(counts - draws // subsets).max() < 97


def test_all_samples(whole, tmp_path):
    draw_subset(whole, tmp_path / "all", samples=48, seed=0)
    assert Manifest.load(tmp_path / "all").ids.equals(Manifest.load(whole).ids)


@pytest.mark.parametrize("samples", [0, 49])
def test_impossible_size(whole, tmp_path, samples):
    with pytest.raises(ValueError, match=rf"{whole}: has 48 samples, so no subset of {samples}"):
        draw_subset(whole, tmp_path / "part", samples=samples, seed=0)


def test_folders(whole, tmp_path):
    with pytest.raises(ValueError, match=rf"{whole}: exists already"):
        draw_subset(whole, whole, samples=1, seed=0)
    (whole / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"dataset\.json: no such file"):
        draw_subset(whole, tmp_path / "part", samples=1, seed=0)
    assert not (tmp_path / "part").exists()
