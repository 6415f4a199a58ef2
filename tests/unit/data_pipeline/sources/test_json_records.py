import gzip
import json
import multiprocessing
import shutil
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipeline.sources import json_reader
from data_pipeline.sources.json_records import JsonRecords, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def scan(file, text, **options):
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    visited = []
    records = JsonRecords(file, visited.append, **options)
    assert [records[index] for index in range(len(records))] == visited
    return visited


@given(
    values=st.lists(VALUES, max_size=6),
    indent=st.sampled_from([None, 1]),
    ascii=st.booleans(),
    chunk=st.integers(1, 40),
)
@example(values=[0.0, -1e-5, 10], indent=None, ascii=False, chunk=1)
def test_equals_json_load_wherever_the_chunks_end(tmp_path_factory, values, indent, ascii, chunk):
    folder = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_reader, "CHUNK_BYTES", chunk)
        text = json.dumps(values, indent=indent, ensure_ascii=ascii)
        assert scan(folder / "a.json", f" {text}\n") == json.loads(text)
        keyed = json.dumps({"version": 1, "list": values, "rest": [{}]}, indent=indent, ensure_ascii=ascii)
        assert scan(folder / "b.json", keyed, key="list") == json.loads(text)
        lines = "\n\n".join(json.dumps(value, ensure_ascii=ascii) for value in values)
        assert scan(folder / "c.jsonl", lines) == json.loads(text)


BROKEN = {
    "value": ('[\n  {"id": "a"},\n  {"id": }\n]', "line 3 column 10: broken JSON: Expecting value"),
    "comma": ('[{"id": "a"}\n {"id": "b"}]', "line 2 column 2: broken JSON: Expecting ',' or ']'"),
    "cut short": ('[{"id": "a"}, {"id": "b', r"line 1 column 22: broken JSON: Unterminated string"),
    "no end": ('[{"id": "a"},\n{"id": "b"}', "line 2 column 12: broken JSON: the file ends too early"),
    "more after it": ("[1]\n[2]", "line 2 column 1: broken JSON: Extra data"),
    "nested": ("[1,\n" + "[" * 100_000, "line 2 column 1: broken JSON: nested too deeply"),
    "nested objects": ('[{"a":' * 50_000, "line 1 column 2: broken JSON: nested too deeply"),
    "number": ("[1, " + "7" * 5000 + "]", "line 1 column 5: broken JSON: Exceeds the limit"),
    "no list": ('{"id": "a"}', "expected a list of samples, but it begins with '{'"),
    "empty": ("", "broken JSON: the file ends too early"),
    "not UTF-8": (b'["\xe9t\xe9"]', "not UTF-8 text"),
    "half a character": (b'["x\xc3', "not UTF-8 text"),
}


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(json_reader, "CHUNK_BYTES", chunk)
    text, message = BROKEN[name]
    with pytest.raises(ValueError, match=rf"a\.json: .*{message}"):
        scan(tmp_path / "a.json", text)


def test_broken_lines_are_refused(tmp_path):
    for text, message in {
        '{"id": "line\u2028separator"}\n\n{"id": \n': "line 3 column 8: broken JSON: Expecting value",
        '{"id": "a"} {"id": "b"}\n': "line 1 column 13: broken JSON: Extra data",
        '1\n{"id": "a\n"}\n': "line 2 column 8: broken JSON: Unterminated string",
        "1\n" + "[" * 100_000: "line 2 column 1: broken JSON: nested too deeply",
    }.items():
        with pytest.raises(ValueError, match=rf"a\.jsonl: {message}"):
            scan(tmp_path / "a.jsonl", text)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_record_over_the_limit_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(json_reader, "CHUNK_BYTES", 100)
    records = [{"id": 1}, {"id": 2, "text": "x" * 3000}]
    text = json.dumps(records) if name == "a.json" else "\n".join(map(json.dumps, records))
    assert scan(tmp_path / name, text, max_record_bytes=3100) == records
    with pytest.raises(ValueError, match=r"line \d: a record of more than 0.00195312 MiB"):
        scan(tmp_path / name, text, max_record_bytes=2048)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_memory_does_not_grow_with_the_file(name, tmp_path):
    record = json.dumps({"id": "x", "text": "a few words " * 100})
    ends = ("[", ",\n", "]") if name == "a.json" else ("", "\n", "")
    with (tmp_path / name).open("w") as file:
        file.write(ends[0] + ends[1].join([record] * 20_000) + ends[2])
    assert (tmp_path / name).stat().st_size > 24e6
    tracemalloc.start()
    records = JsonRecords(tmp_path / name, lambda record: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(records) == 20_000
    # Measured: 6.0 MB for the list, mostly copies of a chunk of 1 MiB, and 0.4 MB for the lines.
    assert peak < 8e6


def test_missing_key_and_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json: key data: .* no such key"):
        scan(tmp_path / "a.json", '{"other": [1]}', key="data")
    with pytest.raises(ValueError, match=r"other\.json: cannot be read \(No such file"):
        JsonRecords(tmp_path / "other.json", print)
    with pytest.raises(ValueError, match=r"other\.json: cannot be read \(No such file"):
        read_json(tmp_path / "other.json")


def test_a_file_changed_after_the_scan_is_noticed(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('[{"id": "first"}, {"id": "second"}]')
    records = JsonRecords(file, lambda record: None)
    file.write_text("[]")
    with pytest.raises(ValueError, match="changed since the file was opened"):
        records[1]


def _read_backwards(records, numbers):
    numbers.put([records[index]["n"] for index in reversed(range(len(records)))])


def test_forked_processes_share_an_open_file(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"n": number, "fill": "x" * 500} for number in range(2000)]))
    records = JsonRecords(tmp_path / "a.json", lambda record: None)
    context = multiprocessing.get_context("fork")
    numbers = context.Queue()
    processes = [context.Process(target=_read_backwards, args=(records, numbers)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [records[index]["n"] for index in range(2000)] == list(range(2000))
    for _ in processes:
        assert numbers.get(timeout=60) == list(range(1999, -1, -1))
    for process in processes:
        process.join()


def test_read_json(tmp_path):
    (tmp_path / "a.json").write_text(' {"a": [1, 2]}\n')
    assert read_json(tmp_path / "a.json") == {"a": [1, 2]}
    (tmp_path / "a.json").write_text('{"a": [1, 2]')
    with pytest.raises(ValueError, match=r"a\.json: line 1 column 13: broken JSON"):
        read_json(tmp_path / "a.json")


LISTED = [{"id": 1, "text": "Größe"}, {"id": 2}]


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.json.gz", "a.jsonl.gz", "A.NDJSON.GZ"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_forms_of_files(name, mark, chunk, tmp_path, monkeypatch):
    """Lists and lines, with a byte order mark (as Windows writes it) and without, packed and not."""
    monkeypatch.setattr(json_reader, "CHUNK_BYTES", chunk)
    is_list = ".json" in name.removesuffix(".gz")[-5:]
    text = json.dumps(LISTED, ensure_ascii=False) if is_list else "\r\n".join(map(json.dumps, LISTED))
    content = mark + text.encode()
    assert scan(tmp_path / name, gzip.compress(content) if name.lower().endswith(".gz") else content) == LISTED


def test_a_broken_gzip_file_is_named(tmp_path):
    packed = gzip.compress(json.dumps(LISTED * 500).encode())
    for content in (packed[:-20], b"[]", packed[:40] + bytes(20) + packed[60:], b""):
        with pytest.raises(ValueError, match=r"a\.json\.gz: (not a whole gzip file|line 1 column 1: broken JSON)"):
            scan(tmp_path / "a.json.gz", content)
    with pytest.raises(ValueError, match=r"none\.json\.gz: cannot be unpacked \(No such file or directory\)"):
        JsonRecords(tmp_path / "none.json.gz", print)


def test_a_gzip_file_without_room_to_unpack(tmp_path, monkeypatch):
    """Refused while something is left for others; the packed file is a small one."""
    usage = shutil.disk_usage(tmp_path)
    free = iter(range(1000, -100, -100))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    with pytest.raises(
        ValueError, match=r"a\.json\.gz: cannot be unpacked \(it takes more than nine .*; set TMPDIR to a folder"
    ):
        scan(tmp_path / "a.json.gz", gzip.compress(b"[" + b" " * (20 << 20) + b"]"))
    assert next(free, None) is None


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_file_larger_than_memory(name, tmp_path):
    """Sparse, as a broken copy can be: it takes no room on the disk."""
    with open(tmp_path / name, "wb") as file:
        file.write(b'[{"id": 1}')
        file.truncate(1 << 42)
    with pytest.raises(ValueError, match=rf"{name}: line 1"):
        JsonRecords(tmp_path / name, lambda record: None)
