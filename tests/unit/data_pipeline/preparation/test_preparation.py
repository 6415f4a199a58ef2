import contextlib
import dataclasses
import errno
import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import data_pipeline.preparation.prepare as preparation
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.preparation.plan import plan_shards
from data_pipeline.preparation.unfinished import UnfinishedFolder
from data_pipeline.sample import BadSample, ImageBytes
from data_pipeline.sources.llava_json import LlavaJson


@pytest.fixture
def open_sources(llava_folder):
    """Two sources of 24 samples; with 7 records a shard, 4 shards each."""

    def call():
        files = (llava_folder / "data.json", llava_folder / "images")
        return [LlavaJson(*files, "llava", published=25), LlavaJson(*files, "other.set")]

    return call


@pytest.fixture
def prepare(tokenizer, open_sources):
    def call(folder, sources=None, template="llama3", **options):
        sources = open_sources() if sources is None else sources
        options = {"samples_per_shard": 7, "progress": False} | options
        return preparation.prepare(sources, folder, renderer=Renderer(tokenizer, template), **options)

    return call


@pytest.fixture
def reference(prepare, tmp_path):
    """The data set as one process writes it at once."""
    prepare(tmp_path / "reference")
    return contents(tmp_path / "reference")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def identities(folder):
    """What changes when a file is written anew."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("shards/*.tar")}


class Wrapped:
    """A source with something happening at some of its samples."""

    def __init__(self, source, happening):
        self.source, self.happening = source, happening
        self.name, self.published, self.renamed, self.id = source.name, source.published, source.renamed, source.id
        self.digest, self.options = source.digest, source.options

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.happening.get(index, self.source.__getitem__)(index)


def bad(index):
    return BadSample(id=f"s{index}", source="llava", reason="missing image", message=f"data.json: no image {index}")


def kill_this_process(index):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(index):
    raise AssertionError(f"sample {index} is read again")


def test_folder_and_counts(prepare, tmp_path):
    info = prepare(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["dataset.json", "left_out.jsonl", "manifest.parquet", "shards"]
    assert info == json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (info["format_version"], info["samples"], info["images"], info["left_out"]) == (3, 48, 48, 0)
    nothing = {"left_out": 0, "left_out_by_reason": {}, "renamed": 0, "accepted_with_change": {}}
    assert info["sources"] == {
        "llava": {"samples": 24, "published": 25, **nothing},
        "other.set": {"samples": 24, "published": None, **nothing},
    }
    assert info["chat_template"] == "llama3" and info["shard_folder"] == "."
    names = [f"shards/{name}-{number:06d}.tar" for name in ("llava", "other_set") for number in range(4)]
    assert list(info["shard_bytes"]) == names
    assert {name: (tmp_path / "out" / name).stat().st_size for name in names} == info["shard_bytes"]
    table = pq.read_table(tmp_path / "out" / "manifest.parquet")
    for column in ("text_tokens", "loss_tokens"):
        assert info[column] == sum(table[column].to_pylist())
    assert table["id"].to_pylist() == [f"s{number}" for number in range(24)] * 2  # in the order of the plan
    assert table["source"].to_pylist() == ["llava"] * 24 + ["other.set"] * 24
    assert table["shard"].to_pylist() == [names[source * 4 + i // 7] for source in range(2) for i in range(24)]
    assert len(Manifest.load(tmp_path / "out")) == 48


@pytest.mark.parametrize("num_workers", [1, 3])
def test_same_bytes_from_any_number_of_workers(prepare, reference, tmp_path, num_workers):
    prepare(tmp_path / "out", num_workers=num_workers)
    assert contents(tmp_path / "out") == reference


@pytest.mark.parametrize("num_tasks", [2, 3, 20])
def test_same_bytes_from_any_number_of_tasks(prepare, reference, tmp_path, num_tasks):
    """More tasks than shards among them; in any order."""
    infos = [prepare(tmp_path / "out", task=task, num_tasks=num_tasks) for task in reversed(range(num_tasks))]
    assert [info is None for info in infos] == [True] * (num_tasks - 1) + [False]
    assert contents(tmp_path / "out") == reference
    late = prepare(tmp_path / "out", task=0, num_tasks=num_tasks)  # one that was queued again
    assert late == infos[-1] and contents(tmp_path / "out") == reference


def test_tasks_at_the_same_time(prepare, reference, tmp_path):
    """Some of them find all shards complete at the same time, and none fails."""
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        barrier = context.Barrier(4)

        def work(task, folder=tmp_path / str(attempt), barrier=barrier):
            barrier.wait()
            prepare(folder, task=task, num_tasks=4)

        processes = [context.Process(target=work, args=(task,)) for task in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 4
        assert contents(tmp_path / str(attempt)) == reference


def test_two_calls_with_the_same_task(prepare, open_sources, reference, tmp_path):
    """The later one goes on, as when a task is queued again while its first life is cut off but not dead."""
    first, second = open_sources()

    def second_life(index):
        prepare(tmp_path / "out", task=0, num_tasks=2)
        return first[index]

    with pytest.raises(FileNotFoundError, match=rf"is another call at work on the same task of {tmp_path}/out\?"):
        prepare(tmp_path / "out", [Wrapped(first, {3: second_life}), second], task=0, num_tasks=2)
    prepare(tmp_path / "out", task=1, num_tasks=2)
    assert contents(tmp_path / "out") == reference


@pytest.mark.parametrize("moment", ["merge_shards", "_write_shards"])
def test_another_task_finishes_first(prepare, reference, tmp_path, monkeypatch, moment):
    """The parts disappear from under this one."""
    original = getattr(preparation, moment)

    def delayed(*args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(preparation, moment, original)
            prepare(tmp_path / "out")
        return original(*args, **options)

    monkeypatch.setattr(preparation, moment, delayed)
    assert prepare(tmp_path / "out")["samples"] == 48
    assert contents(tmp_path / "out") == reference


@pytest.mark.parametrize("num_workers", [0, 2])
def test_goes_on_from_the_complete_shards(prepare, open_sources, reference, tmp_path, num_workers):
    def stop(index):
        raise ValueError("stop")

    first, second = open_sources()
    with pytest.raises(ValueError, match="stop"):
        prepare(tmp_path / "out", [first, Wrapped(second, {15: stop})], num_workers=num_workers)
    # A shard is complete with its part file; one that another process was about to complete is written again.
    complete = {path.stem for path in (tmp_path / "out" / "parts").iterdir()}
    before = {name: i for name, i in identities(tmp_path / "out").items() if Path(name).stem in complete}
    assert len(before) == len(complete) >= (6 if num_workers == 0 else 4) and "other_set-000002.tar" not in before
    info = prepare(tmp_path / "out", [Wrapped(first, dict.fromkeys(range(24), fail)), second])
    after = identities(tmp_path / "out")
    assert {name: after[name] for name in before} == before and len(after) == 8
    assert info["samples"] == 48 and contents(tmp_path / "out") == reference


def test_other_settings_are_refused(prepare, open_sources, llava_folder, tmp_path):
    first, second = open_sources()
    no_answer = BadSample(id="s15", source="other.set", reason="no answer", message="cannot be used")
    with pytest.raises(ValueError, match="cannot be used"):
        prepare(tmp_path / "out", [first, Wrapped(second, {15: lambda _: no_answer})])
    plan = contents(tmp_path / "out")
    records = json.loads((llava_folder / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps([record | {"id": f"x{i}"} for i, record in enumerate(records)]))
    (tmp_path / "fewer.json").write_text(json.dumps(records[:-1]))
    records[3]["conversations"][1]["value"] = "Another answer."
    (tmp_path / "edited.json").write_text(json.dumps(records))
    edited = LlavaJson(tmp_path / "edited.json", llava_folder / "images", "other.set")
    other = LlavaJson(tmp_path / "data.json", llava_folder / "images", "other.set")
    fewer = LlavaJson(tmp_path / "fewer.json", llava_folder / "images", "other.set")
    for options, difference in [
        ({"samples_per_shard": 8}, r"samples_per_shard was 7, now 8\."),
        ({"max_image_pixels": 10**7}, r"max_image_pixels was 100000000, now 10000000\."),
        ({"template": "vicuna"}, r"chat_template was 'llama3', now 'vicuna'; rendering_sha256 was '\w+', now '\w+'\."),
        ({"sources": [first]}, r"sources were llava, other\.set, now llava\."),
        ({"sources": [second, first]}, r"sources were llava, other\.set, now other\.set, llava\."),
        (
            {"sources": [first, other]},
            r"source other\.set: ids_sha256 was '\w+', now '\w+'; source other\.set: cont",
        ),
        ({"sources": [first, edited]}, r"source other\.set: content_sha256 was '\w+', now '\w+'\."),
        ({"sources": [first, fewer]}, r"source other\.set: samples was 24, now 23; source other\.set: ids_sha256 was "),
    ]:
        with pytest.raises(ValueError, match=rf"{tmp_path}/out: a data set was begun there, and .*: {difference}"):
            prepare(tmp_path / "out", **options)
    assert contents(tmp_path / "out") == plan
    prepare(tmp_path / "out")
    with pytest.raises(ValueError, match=r"out: a finished data set is there, and .*: samples_per_shard was 7, now 8"):
        prepare(tmp_path / "out", samples_per_shard=8)


def no_links(*_):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False])
def test_settings_of_two_that_begin_at_once(tmp_path, monkeypatch, links):
    """One of them may go on, whichever it is; the plan is that one's, from the moment it is there."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    passed = context.RawArray("b", 4 * 25)

    def begin(number):
        for attempt in range(25):
            settings = {"samples_per_shard": number, "sources": {}, "filling": "x" * 100_000}
            folder = UnfinishedFolder(folder=tmp_path / str(attempt), shards=[], settings=settings)
            barrier.wait()
            with contextlib.suppress(ValueError):
                folder.begin()
                passed[4 * attempt + number] = True

    processes = [context.Process(target=begin, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    for attempt in range(25):
        winners = [number for number in range(4) if passed[4 * attempt + number]]
        assert len(winners) == 1
        plan = json.loads((tmp_path / str(attempt) / "plan.json").read_text())
        assert plan["samples_per_shard"] == winners[0]
        assert os.listdir(tmp_path / str(attempt) / "parts") == []


def test_the_lock_of_a_killed_process_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr("data_pipeline.preparation.written_aside._LONGEST_WAIT", 0)
    (tmp_path / "parts" / "plan.json.lock").mkdir(parents=True)
    with pytest.raises(OSError, match=rf"{tmp_path}/parts/plan\.json\.lock: left by a process that was killed; remove"):
        UnfinishedFolder(folder=tmp_path, shards=[], settings={}).begin()
    assert os.listdir(tmp_path / "parts") == ["plan.json.lock"]


def test_finished_without_a_key_is_refused_by_its_name(prepare, tmp_path):
    info = prepare(tmp_path / "out")
    del info["shard_bytes"]
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"out/dataset\.json: there is no key shard_bytes"):
        prepare(tmp_path / "out")


def test_finished_is_left_alone(prepare, reference, tmp_path):
    folder = tmp_path / "reference"
    before = identities(folder)
    info = prepare(folder, num_workers=2)
    assert info["samples"] == 48 and identities(folder) == before and contents(folder) == reference


def test_folder_of_something_else(prepare, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=rf"{tmp_path}: holds notes\.txt; choose a new or an empty folder"):
        prepare(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_listed_and_counted(prepare, open_sources, tmp_path, num_workers):
    first, second = open_sources()
    sources = [Wrapped(first, {3: bad, 20: bad}), second]
    info = prepare(tmp_path / "out", sources, on_bad_sample="skip", max_left_out=0.09, num_workers=num_workers)
    assert (info["samples"], info["left_out"], info["left_out_by_reason"]) == (46, 2, {"missing image": 2})
    assert info["sources"]["llava"]["left_out_by_reason"] == {"missing image": 2}
    assert [info["sources"][name]["left_out"] for name in ("llava", "other.set")] == [2, 0]
    lines = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": f"s{i}", "source": "llava", "reason": "missing image", "message": f"data.json: no image {i}"}
        for i in (3, 20)
    ]
    assert len(Manifest.load(tmp_path / "out")) == 46


def test_samples_accepted_with_a_change_are_counted(prepare, open_sources, tmp_path):
    """Each kind by source, over shards and tasks; not for samples that are left out afterwards."""
    first, second = open_sources()

    def changed(*kinds):
        return lambda index: dataclasses.replace(first[index], changes=kinds)

    unread = dataclasses.replace(first[8], images=(ImageBytes("empty", b""),), changes=("no id",))
    happening = {3: changed("no id"), 9: changed("no id", "empty image"), 20: changed("no id"), 8: lambda _: unread}
    sources = [Wrapped(first, happening), Wrapped(second, {1: changed("images")})]
    for task in range(2):
        info = prepare(tmp_path / "out", sources, on_bad_sample="skip", task=task, num_tasks=2)
    assert info["sources"]["llava"]["accepted_with_change"] == {"no id": 3, "empty image": 1}
    assert info["sources"]["other.set"]["accepted_with_change"] == {"images": 1}
    assert info["accepted_with_change"] == {"no id": 3, "empty image": 1, "images": 1}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sample_that_cannot_be_read_is_left_out(prepare, llava_folder, tmp_path, num_workers):
    """An image that the disk does not give, a name too long: the sample's fault, not the shard's."""
    records = json.loads((llava_folder / "data.json").read_text())
    records[3]["image"], records[20]["image"] = "x" * 300, "data:image/png;base64,AAAA"
    (tmp_path / "data.json").write_text(json.dumps(records))
    source = LlavaJson(tmp_path / "data.json", llava_folder / "images", "llava")
    info = prepare(tmp_path / "out", [source], on_bad_sample="skip", max_left_out=0.1, num_workers=num_workers)
    assert info["left_out_by_reason"] == {"unreadable image": 1, "not an image": 1}
    lines = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["s3", "s20"]
    assert all(f"{tmp_path}/data.json: sample '{line['id']}' (entry " in line["message"] for line in lines)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_samples(prepare, open_sources, reference, tmp_path, num_workers):
    """Shards that lack samples are written again once the files are repaired, and no other."""
    first, second = open_sources()
    broken = Wrapped(first, dict.fromkeys([8, *range(14, 24)], bad))
    with pytest.raises(ValueError) as stopped:
        prepare(tmp_path / "out", [broken, second], on_bad_sample="skip", max_left_out=0.25, num_workers=num_workers)
    assert str(stopped.value).startswith(
        "source llava: 7 of 24 samples cannot be used, more than the share of 0.25 that may be left out; "
        "the most frequent reasons so far:\n  7 x missing image, e.g. data.json: no image "
    )
    assert not (tmp_path / "out" / "dataset.json").exists()
    complete = {path.stem for path in (tmp_path / "out" / "parts").iterdir()}
    before = {name: i for name, i in identities(tmp_path / "out").items() if Path(name).stem in complete}
    assert complete.isdisjoint({"llava-000001", "llava-000002", "llava-000003"})
    assert num_workers > 0 or complete == {"llava-000000"}
    prepare(tmp_path / "out", num_workers=num_workers)
    assert contents(tmp_path / "out") == reference
    after = identities(tmp_path / "out")
    assert {name: after[name] for name in before} == before


def test_samples_skipped_before_are_too_many_for_error(prepare, open_sources, tmp_path):
    first, second = open_sources()
    sources = [Wrapped(first, {3: bad}), second]
    prepare(tmp_path / "out", sources, on_bad_sample="skip", task=0, num_tasks=2)
    with pytest.raises(ValueError, match="1 of 24 samples cannot be used, more than the share of 0 "):
        prepare(tmp_path / "out", sources)
    with pytest.raises(ValueError, match=r"^data\.json: no image 3$"):
        prepare(tmp_path / "out", sources)


def test_nothing_left_is_an_error(prepare, open_sources, tmp_path):
    first, _ = open_sources()
    sources = [Wrapped(first, dict.fromkeys(range(24), bad))]
    with pytest.raises(ValueError, match=r"no sample to write; left out: \{'missing image': 24\}"):
        prepare(tmp_path / "out", sources, on_bad_sample="skip", max_left_out=1.0)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_worker_that_dies_names_its_shard(prepare, open_sources, reference, tmp_path):
    first, second = open_sources()
    with pytest.raises(ChildProcessError, match="process writing other_set-000001 was killed by SIGKILL"):
        prepare(tmp_path / "out", [first, Wrapped(second, {8: kill_this_process})], num_workers=2)
    assert not multiprocessing.active_children()
    assert list((tmp_path / "out" / "parts").glob("other_set-000001.tar.*")), "the killed process left a file"
    prepare(tmp_path / "out")
    assert contents(tmp_path / "out") == reference


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_space_left(prepare, reference, tmp_path, num_workers):
    """A limit on the size of files stands for a full disk: writing fails in the same way."""
    sizes = [len(content) for name, content in reference.items() if name.endswith(".tar")]

    def limited(sender):
        limit = sorted(sizes)[len(sizes) // 2]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            prepare(tmp_path / "out", num_workers=num_workers)
        except OSError as error:
            sender.send(str(error))

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=limited, args=(sender,))
    process.start()
    process.join()
    assert receiver.poll(), "no error"
    assert receiver.recv().startswith("[Errno 27] cannot write the shard: File too large: '")
    complete = {path.stem for path in (tmp_path / "out" / "parts").iterdir()}
    before = {name: i for name, i in identities(tmp_path / "out").items() if Path(name).stem in complete}
    prepare(tmp_path / "out")
    after = identities(tmp_path / "out")
    assert {name: after[name] for name in before} == before and contents(tmp_path / "out") == reference


def test_folder_that_cannot_be_written(prepare, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"'{tmp_path}/file/out'"):
        prepare(tmp_path / "file" / "out")


def test_names_that_make_the_same_files(llava_folder):
    files = (llava_folder / "data.json", llava_folder / "images")
    for name in ("a.b", "A_B"):
        with pytest.raises(ValueError, match=rf"sources 'a\.b' and '{name}' would write the same files"):
            plan_shards([LlavaJson(*files, "a.b"), LlavaJson(*files, name)], 10)
