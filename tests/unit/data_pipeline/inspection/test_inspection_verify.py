import json
import shutil

import fsspec
import pytest

from data_pipeline.dataset.manifest import Manifest
from data_pipeline.inspection.verify import verify
from tools.inspect_data import main

PIXELS = 100_000_000


def check(folder, **options):
    return verify(Manifest.load(folder), max_image_pixels=PIXELS, progress=False, **options)


def samples_of(manifest, shard):
    return [manifest.id(i) for i in range(len(manifest)) if manifest.shard_names[manifest.shard[i]] == shard]


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("decode", [False, True])
def test_all_is_well(prepared, num_workers, decode):
    assert check(prepared, num_workers=num_workers, decode_images=decode) == []


@pytest.mark.parametrize("part", ["json", "image"])
def test_flipped_byte(damaged, part):
    manifest = Manifest.load(damaged)
    index = 7
    places, sizes = {
        "json": (manifest.json_offset, manifest.json_size),
        "image": (manifest.image_offset, manifest.image_size),
    }[part]
    row = index if part == "json" else manifest.first_image[index]
    shard = manifest.shard_names[manifest.shard[index]]
    for byte in (places[row], places[row] + sizes[row] - 1):
        flip(damaged / shard, byte)
        (bad,) = check(damaged)
        assert (bad.shard, bad.id, bad.source, bad.reason) == (shard, manifest.id(index), "llava", "changed bytes")
        flip(damaged / shard, byte)


def test_truncated_shard(damaged):
    manifest = Manifest.load(damaged)
    shard = manifest.shard_names[1]
    last = int(manifest.shard.searchsorted(2) - 1)  # samples lie in the order of the manifest
    file = damaged / shard
    whole = file.stat().st_size
    file.write_bytes(file.read_bytes()[: manifest.json_offset[last] + 3])
    bad = check(damaged, num_workers=2)
    assert (bad[0].shard, bad[0].id, bad[0].reason) == (shard, None, "shard size")
    assert f"has {file.stat().st_size} bytes instead of {whole}" in bad[0].message
    assert [(entry.shard, entry.id, entry.reason) for entry in bad[1:]] == [
        (shard, manifest.id(last), "truncated shard")
    ]


def test_only_the_end_is_missing(damaged):
    """Bytes after the last sample, which no hash covers."""
    shard = Manifest.load(damaged).shard_names[0]
    file = damaged / shard
    file.write_bytes(file.read_bytes()[:-512])
    (bad,) = check(damaged)
    assert (bad.shard, bad.id, bad.reason) == (shard, None, "shard size")


def test_missing_shard(damaged):
    manifest = Manifest.load(damaged)
    shard = manifest.shard_names[2]
    (damaged / shard).unlink()
    bad = check(damaged, num_workers=2)
    assert [entry.id for entry in bad] == samples_of(manifest, shard)
    assert {(entry.shard, entry.reason) for entry in bad} == {(shard, "missing shard")}
    assert bad[0].message == f"{damaged}/{shard}: sample {bad[0].id!r} of llava: there is no such shard"


def test_several_shards_come_in_order(damaged):
    manifest = Manifest.load(damaged)
    for index in (20, 3, 11):
        flip(damaged / manifest.shard_names[manifest.shard[index]], manifest.json_offset[index])
    assert [entry.id for entry in check(damaged, num_workers=2)] == ["s3", "s11", "s20"]


def test_decode_compares_sizes(prepared):
    manifest = Manifest.load(prepared)
    manifest.widths[4] += 1
    options = {"max_image_pixels": PIXELS, "progress": False}
    assert verify(manifest, **options) == []
    (bad,) = verify(manifest, decode_images=True, **options)
    assert bad.id == "s4" and bad.reason == "size differs"
    assert f"in the manifest {manifest.widths[4]}x{manifest.heights[4]}" in bad.message


def test_url(prepared):
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(prepared), "/verified", recursive=True)
    manifest = Manifest.load("memory://verified")
    options = {"max_image_pixels": PIXELS, "progress": False}
    assert verify(manifest, **options) == []
    shard = manifest.shard_names[0]
    content = bytearray(filesystem.cat_file(f"/verified/{shard}"))
    content[manifest.json_offset[0]] ^= 1
    filesystem.pipe_file(f"/verified/{shard}", bytes(content))
    assert [entry.id for entry in verify(manifest, **options)] == [manifest.id(0)]


def test_tool_lists_what_is_bad(damaged, tmp_path, capsys):
    manifest = Manifest.load(damaged)
    shard = manifest.shard_names[0]
    flip(damaged / shard, manifest.json_offset[0])
    (damaged / manifest.shard_names[1]).unlink()
    out = tmp_path / "out"
    assert main([str(damaged), "--verify", "--output", str(out), "--workers", "2"]) == 1
    output = capsys.readouterr()
    assert f"changed bytes: {damaged}/{shard}: sample 's0' of llava: " in output.out
    assert "error: " in output.err and "6 bad of 24 samples in 5 shards" in output.err
    listed = [json.loads(line) for line in (out / "bad_samples.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in listed] == ["s0", *samples_of(manifest, manifest.shard_names[1])]


def test_tool_says_that_all_is_well(prepared, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(prepared), "--verify", "--decode", "--output", str(out), "--workers", "0"]) == 0
    assert "24 samples in 5 shards are as they were written and can be decoded" in capsys.readouterr().out
    assert not out.exists()


def test_report_from_a_url(prepared, tmp_path):
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(prepared), "/reported", recursive=True)
    assert main(["memory://reported", "--output", str(tmp_path / "out"), "--samples", "3"]) == 0
    assert (tmp_path / "out" / "index.html").is_file()


def test_report_needs_whole_shards(damaged, tmp_path, capsys):
    shutil.rmtree(damaged / "shards")
    assert main([str(damaged), "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.endswith(".tar: no such file, but the manifest lists it\n")
    assert not (tmp_path / "out").exists()
