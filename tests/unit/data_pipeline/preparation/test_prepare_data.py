import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.shard_reader import ShardReader
from tools.prepare_data import main, parse_arguments


@pytest.fixture
def arguments(llava_folder, tokenizer_folder, tmp_path):
    source = f"llava_json={llava_folder},file=data.json,name=llava"
    output = str(tmp_path / "out")
    return ["--source", source, "--tokenizer", str(tokenizer_folder), "--output", output, "--workers", "0"]


@pytest.fixture(scope="module")
def many_shards(llava_folder, tokenizer_folder, tmp_path_factory):
    """Arguments for 50 shards of 2 samples and two workers, without the output folder."""
    tmp_path = tmp_path_factory.mktemp("many_shards")
    records = json.loads((llava_folder / "data.json").read_text())
    copies = [record | {"id": f"{record['id']}-{copy}"} for copy in range(5) for record in records]
    (tmp_path / "data.json").write_text(json.dumps(copies[:100]))
    shutil.copytree(llava_folder / "images", tmp_path / "images")
    source = f"llava_json={tmp_path},file=data.json,name=llava"
    options = ["--samples-per-shard", "2", "--workers", "2", "--output"]
    return ["--source", source, "--tokenizer", str(tokenizer_folder), *options]


@pytest.fixture(scope="module")
def reference(many_shards, tmp_path_factory):
    """What one undisturbed call writes, without other processes."""
    folder = tmp_path_factory.mktemp("reference") / "out"
    assert main([*many_shards, str(folder), "--workers", "0"]) == 0
    return folder


def start(arguments, folder, num_shards):
    """The tool in a process group of its own, once it has completed some shards."""
    command = [sys.executable, "-m", "tools.prepare_data", *arguments, str(folder)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while len(complete_shards(folder)) < num_shards:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    return process


def complete_shards(folder):
    """What changes when a complete shard is written anew."""
    shards = {part.stem: folder / "shards" / f"{part.stem}.tar" for part in folder.glob("parts/*.parquet")}
    return {name: (tar.stat().st_ino, tar.stat().st_mtime_ns) for name, tar in shards.items()}


def assert_goes_on(arguments, folder, reference):
    """The next call with the same arguments keeps what is complete, and ends with what one call alone writes."""
    before = complete_shards(folder)
    assert 5 <= len(before) < 50
    assert main([*arguments, str(folder)]) == 0
    after = {tar.stem: (tar.stat().st_ino, tar.stat().st_mtime_ns) for tar in folder.glob("shards/*.tar")}
    assert {name: after[name] for name in before} == before
    names = [str(path.relative_to(reference)) for path in reference.rglob("*") if path.is_file()]
    assert sorted(names) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    for name in names:
        assert (folder / name).read_bytes() == (reference / name).read_bytes()


def test_killed_in_the_middle(many_shards, reference, tmp_path):
    process = start(many_shards, tmp_path / "out", num_shards=5)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert_goes_on(many_shards, tmp_path / "out", reference)


def test_interrupted_in_the_middle(many_shards, reference, tmp_path):
    process = start(many_shards, tmp_path / "out", num_shards=5)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 1
    assert f"interrupted; the same command goes on with {tmp_path}/out" in stderr and "Traceback" not in stderr
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left
    assert not list((tmp_path / "out" / "parts").glob("*.tar.*")), "a worker left a file"
    assert_goes_on(many_shards, tmp_path / "out", reference)


def test_writes_a_data_set(arguments, tmp_path, capsys):
    assert main([*arguments, "--samples-per-shard", "10"]) == 0
    *table, summary = capsys.readouterr().out.splitlines()
    size = sum(path.stat().st_size for path in (tmp_path / "out" / "shards").iterdir())
    columns = ["set", "records", "published", "difference", "left", "out", "samples", "renamed", "shards", "bytes"]
    assert [line.split() for line in table] == [
        columns,
        ["llava", "24", "-", "-", "0", "24", "0", "3", f"{size:,}"],
        ["all", "24", "0", "24", "0", "3", f"{size:,}"],
    ]
    assert summary.startswith(f"{tmp_path}/out: 24 samples with 24 images and ") and summary.endswith(" in 3 shards")
    assert len(Manifest.load(tmp_path / "out")) == 24


def test_left_out_renamed_and_published(arguments, llava_folder, tmp_path, capsys):
    """A set with a published number, of which one file is missing and one id stands twice."""
    records = json.loads((llava_folder / "data.json").read_text())
    records[1]["id"], records[2]["image"] = "s0", "nothing.jpg"
    del records[3]["id"], records[4]["id"]
    (tmp_path / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(records))
    shutil.copytree(llava_folder / "images", tmp_path / "images")
    arguments[1] = f"llava_pretrain={tmp_path}"
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    row = out.splitlines()[1].split()
    assert row[1:8] == ["24", "558,128", "-558,104", "1", "23", "1", "1"]
    assert "changed in llava_pretrain: 2 x no id" in out
    assert "left out of llava_pretrain: 1 x missing image" in out and f"; 1 left out, see {tmp_path}/out/left_o" in out
    assert "warning: llava_pretrain has 24 records, but 558,128 are published: " in err


def test_two_tasks(arguments, tmp_path, capsys):
    arguments += ["--samples-per-shard", "10", "--tasks", "2"]
    assert main([*arguments, "--task", "1"]) == 0
    assert capsys.readouterr().out == (
        f"task 1 of 2 has written its shards; the last one to end finishes {tmp_path}/out\n"
    )
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert main([*arguments, "--task", "0"]) == 0
    assert " 24 samples " in capsys.readouterr().out.splitlines()[-1]


def test_subset(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    capsys.readouterr()
    draw = ["--from", str(tmp_path / "out"), "--subset", "5", "--seed", "7", "--output", str(tmp_path / "part")]
    assert main(draw) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{tmp_path}/part: 5 samples with ")
    manifest = Manifest.load(tmp_path / "part")
    assert [len(ShardReader(manifest).read(index).turns) for index in range(5)] == [4] * 5


def test_failure_is_said_with_exit_code_1(arguments, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    assert main(arguments) == 1
    assert f"error: {tmp_path}/out: holds thesis.tex" in capsys.readouterr().err


def test_wrong_image_folder_is_an_error(arguments, llava_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    shutil.copy(llava_folder / "data.json", tmp_path)
    arguments[1] = f"llava_json={tmp_path},file=data.json,images=empty,name=llava"
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "error: source llava: 2 of 24 samples cannot be used" in error and "2 x missing image, e.g. " in error
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--samples-per-shard", "0"], "argument --samples-per-shard: must be at least 1, not 0"),
        (["--workers", "-1"], "argument --workers: must be at least 0, not -1"),
        (["--task", "2", "--tasks", "2"], "argument --task: must be from 0 to 1 with --tasks 2, not 2"),
        (["--max-left-out", "5"], "argument --max-left-out: must be a share from 0 to 1, not 5"),
        (["--subset", "5"], "--subset and --from go together"),
        (["--subset", "5", "--from", "x"], "--source and --tokenizer do not go with --subset"),
        (["--template", "latin"], "argument --template: invalid choice: 'latin'"),
    ],
)
def test_wrong_arguments(arguments, capsys, wrong, message):
    with pytest.raises(SystemExit) as stop:
        parse_arguments([*arguments, *wrong])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_source_is_needed(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--output", "x"])
    assert "--source and --tokenizer are needed" in capsys.readouterr().err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--help"])
    assert stop.value.code == 0
    help = capsys.readouterr().out
    assert "examples:" in help and "python tools/prepare_data.py --source " in help and "chartqa" in help
