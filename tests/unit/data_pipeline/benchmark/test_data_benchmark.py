"""The benchmark's arithmetic and that all sides make the same tiles; times are never tested."""

import json
import tarfile

import pytest
import torch

from data_pipeline.benchmark import run as benchmark
from data_pipeline.benchmark.epoch import EpochReport
from data_pipeline.benchmark.pictures import open_shard, synthetic_photo, write_shard
from data_pipeline.benchmark.sides import CPU, DALI_GPU, FAST, PLAIN, SIDES, SLOW, open_sides, unavailable
from data_pipeline.benchmark.table import Table, format_epoch, format_table, make_rows, verdict
from data_pipeline.config import ImageGeometry
from tests.pictures import encoded
from tools import benchmark as tool

SMALL = ImageGeometry(tile_size=112, grid_pinpoints=[[112, 224], [224, 112], [224, 224]])


def table(times):
    rows = make_rows(times, images=10)
    return Table(width=640, height=480, threads=2, kilobytes=100, largest_drift=0.1, rows=rows)


def test_ratios_and_verdict():
    """The machine is 10 times slower in the second round."""
    found = table({SLOW: [8.0, 80.0, 8.0], FAST: [3.0, 30.0, 3.0], CPU: [2.0, 20.0, 1.0]})
    row = found.rows[-1]
    assert row.images_per_second == 5 and row.times_faster == {SLOW: (4.0, 4.0, 8.0), FAST: (1.5, 1.5, 3.0)}
    assert verdict([found]).count("met") == 2 and "NOT" not in verdict([found])
    slower = table({SLOW: [8.0], FAST: [3.0], CPU: [4.0]})
    assert verdict([found, slower]).count("NOT met") == 2
    assert "640x480, 2 threads" in format_table(found) and "4.00 [4.00 - 8.00]" in format_table(found)


def test_a_side_that_cannot_run_is_left_out_and_named():
    found = table({SLOW: [8.0], CPU: [1.0]})
    assert format_table(found).splitlines()[-1].endswith(" -")
    assert f"{FAST} not measured" in verdict([found])


def test_what_the_loader_costs_beside_what_was_wanted():
    report = EpochReport(rows=10**6, start=9.0, resume=4.0, plan=21.0, sizes=0.5, memory=2**30 // 2, fill=0.9512)
    start, resume, sizes, plan, memory, fill = format_epoch(report).splitlines()[1:]
    assert start.endswith("9.00 s") and sizes.endswith("0.50 s") and resume.endswith("4.00 s  (wanted: under 5, met)")
    assert plan.endswith("21.00 s  (wanted: under 20, NOT met)")
    assert memory.endswith("0.50 GiB  (wanted: under 1, met)") and fill.endswith("95.12 %  (wanted: 95%, met)")


def test_shard(tmp_path):
    write_shard(tmp_path / "a.tar", 64, 48, 3)
    with tarfile.open(tmp_path / "a.tar") as tar, open_shard(tmp_path / "a.tar") as shard:
        assert shard.names == tar.getnames() == ["000000.jpg", "000001.jpg", "000002.jpg"]
        files = [shard.read(name) for name in shard.names]
        assert files == [tar.extractfile(name).read() for name in shard.names]
    assert len(set(files)) == 3


def test_synthetic_photos_compress_like_photographs():
    bits = 8 * len(encoded(synthetic_photo(640, 480, 0), "JPEG", quality=90)) / (640 * 480)
    assert 2 < bits < 3  # measured: 2.75; photographs of scikit-image 2.1 to 2.4


@pytest.mark.parametrize("threads", [1, 2])
def test_all_sides_make_the_same_tiles_in_order(tmp_path, threads):
    write_shard(tmp_path / "a.tar", 200, 150, 9)  # more than one batch of DALI
    with open_shard(tmp_path / "a.tar") as shard, open_sides(shard, SMALL, threads) as sides:
        assert set(sides) == set(SIDES) - set(unavailable()) and {SLOW, PLAIN, CPU} <= set(sides)
        for name, side in sides.items():
            tiles = list(side())
            assert [t.shape for t in tiles] == 9 * [(5, 3, 112, 112)], name
            assert all(t.dtype == torch.float32 for t in tiles)
        assert 0 < benchmark.largest_drift(sides) < benchmark.MAX_DRIFT


def test_a_side_with_other_tiles_is_refused(tmp_path):
    tiles = torch.zeros(5, 3, 112, 112)
    with pytest.raises(ValueError, match=r"bad: tiles differ from .* by 6\d"):
        benchmark.largest_drift({SLOW: lambda: iter([tiles]), "bad": lambda: iter([tiles + 0.95])})
    with pytest.raises(ValueError, match=r"bad: tiles of shape \[4, "):
        benchmark.largest_drift({SLOW: lambda: iter([tiles]), "bad": lambda: iter([tiles[1:]])})


def test_the_tool(tmp_path, capsys):
    arguments = ["--data", "--sizes", "96x64", "--threads", "1", "--rounds", "1", "--images", "2", "--samples", "500"]
    assert tool.main([*arguments, "--json", str(tmp_path / "a.json")]) == 0
    printed = capsys.readouterr().out
    assert "96x64, 1 thread " in printed and printed.strip().splitlines()[-1].startswith(f"{CPU}: at least ")
    report = json.loads((tmp_path / "a.json").read_text())
    assert [row["name"] for row in report["tables"][0]["rows"]] == [s for s in SIDES if s not in report["unavailable"]]
    assert report["loader"]["rows"] == 500 and "loader with a manifest of 500 samples" in printed
    assert torch.cuda.is_available() or f"not measured: {DALI_GPU}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "640x480"], "--sizes: only used with --data"),
        (["--images", "3"], "--images: only used with --data"),
        (["--data", "--preset", "cpu"], "--preset: not used with --data"),
        (["--data", "--device", "cpu"], "--device: not used with --data"),
        (["--data", "--sizes", "640"], "'640' is not a size such as 640x480"),
        (["--data", "--threads", "0"], "must be at least 1, not 0"),
        (["--rounds", "0"], "must be at least 1, not 0"),
    ],
)
def test_arguments_that_do_nothing_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.parse_arguments(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
