import multiprocessing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import SampleError
from data_pipeline.sample import BadSample, ImageBytes, ImageFile
from data_pipeline.sources.parquet_rows import ParquetRows
from data_pipeline.sources.registry import open_source

TALK = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]
LOOK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
HF_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write(file, columns, image_type=HF_IMAGE, row_group_size=2):
    table = pa.table({**columns, "image": pa.array(columns["image"], image_type)})
    pq.write_table(table, file, row_group_size=row_group_size)


def test_rows_of_several_files_and_groups(tmp_path):
    for part in range(3):
        pq.write_table(
            pa.table({"n": [10 * part + row for row in range(5)], "unused": ["x"] * 5}),
            tmp_path / f"{part}.parquet",
            row_group_size=2,
        )
    files = sorted(tmp_path.glob("*.parquet"))
    rows = ParquetRows(files, ["n"])
    expected = pq.read_table(files, columns=["n"]).to_pylist()
    assert len(rows) == 15 and [rows[index] for index in range(15)] == expected
    assert [rows[index] for index in (14, 0, 7)] == [expected[index] for index in (14, 0, 7)]
    assert rows.place(0) == (files[0], 0) and rows.place(7) == (files[1], 2) and rows.place(14) == (files[2], 4)
    assert rows.column("unused") == ["x"] * 15 and rows.shared_columns == {"n", "unused"}


def test_images_as_bytes_path_list_or_none(tmp_path):
    (tmp_path / "a.png").write_bytes(b"file")
    two = [{"from": "human", "value": "<image><image>\nBoth?"}, {"from": "gpt", "value": "Yes."}]
    images = [[{"bytes": b"raw", "path": "x.png"}, {"bytes": None, "path": "a.png"}], None, []]
    write(tmp_path / "x.parquet", {"image": images, "conversations": [two, TALK, TALK]}, pa.list_(HF_IMAGE))
    first, second, third = open_source(f"parquet={tmp_path}")
    assert isinstance(first.images[0], ImageBytes) and first.images[0].read() == b"raw"
    assert first.images[0].name == f"{tmp_path}/x.parquet: row 0 ('x-0'), column image, image 0"
    assert first.images[1] == ImageFile(tmp_path / "a.png")
    assert second.images == third.images == ()
    for kind, value in ((pa.binary(), b"raw"), (pa.string(), "a.png")):
        write(tmp_path / "x.parquet", {"image": [value], "conversations": [LOOK]}, kind)
        assert open_source(f"parquet={tmp_path}")[0].images[0].read() == (b"raw" if value == b"raw" else b"file")


def test_question_and_answer_columns_and_ids(tmp_path):
    columns = {"image": [{"bytes": b"1", "path": None}] * 4, "q": ["One?", "Two?", None, "Four?"]}
    columns |= {"a": ["1", "2", "3", ""], "key": ["k", "k", None, "z"]}
    write(tmp_path / "x.parquet", columns)
    source = open_source(f"parquet={tmp_path},question=q,answer=a,id=key,name=numbers")
    assert [sample.id for sample in source] == ["k", "k#2", "x-2", "z"] and source.renamed == 1
    first, _, no_question, no_answer = source
    assert first.turns[0].text == "<image>\nOne?\nAnswer the question using a single word or phrase."
    assert first.turns[1].text == "1" and first.source == "numbers"
    assert no_question.reason == "no question" and "row 2 ('x-2'): key q: expected a text" in no_question.message
    assert no_answer.reason == "no answer"


BAD_IMAGES = {
    "neither": ({"bytes": None, "path": None}, "missing image"),
    "no file": ({"bytes": None, "path": "b.png"}, "missing image"),
    "escapes": ({"bytes": None, "path": "../b.png"}, "bad image path"),
    "count": (None, "image count mismatch"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_image(name, tmp_path):
    value, reason = BAD_IMAGES[name]
    write(tmp_path / "x.parquet", {"image": [{"bytes": b"1", "path": None}, value], "conversations": [LOOK, LOOK]})
    good, bad = open_source(f"parquet={tmp_path}")
    assert good.id == "x-0" and isinstance(bad, BadSample) and bad.reason == reason
    assert bad.message.startswith(f"{tmp_path}/x.parquet: row 1 ('x-1'): ")


def test_broken_files(tmp_path):
    write(tmp_path / "a.parquet", {"image": [{"bytes": b"1" * 500, "path": None}] * 6, "conversations": [LOOK] * 6})
    whole = (tmp_path / "a.parquet").read_bytes()
    for damaged in (b"", b"no parquet", whole[:-30], whole[: len(whole) // 2]):
        (tmp_path / "a.parquet").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.parquet: not a readable parquet file"):
            open_source(f"parquet={tmp_path}")
    # The table of contents is whole, the first pages are not: those rows are bad, the others are not.
    middle = len(whole) // 8
    (tmp_path / "a.parquet").write_bytes(whole[:4] + b"\xff" * middle + whole[4 + middle :])
    samples = list(open_source(f"parquet={tmp_path}"))
    bad = [sample for sample in samples if isinstance(sample, BadSample)]
    assert bad[:2] == samples[:2] and len(bad) < 6
    assert {sample.reason for sample in bad} == {"unreadable parquet"}
    assert "row 0 ('a-0'): row group 0 cannot be read" in bad[0].message


def test_text_that_is_not_utf8(tmp_path):
    text = pa.array([b"good", b"\xe9t\xe9"]).view(pa.string())
    columns = {"image": [{"bytes": b"1", "path": None}] * 2, "q": ["One?", "Two?"]}
    write(tmp_path / "a.parquet", columns | {"a": text})
    good, bad = open_source(f"parquet={tmp_path},question=q,answer=a")
    assert good.turns[1].text == "good" and bad.reason == "broken text" and "row 1" in bad.message
    with pytest.raises(ValueError, match="column a: cannot be read"):
        open_source(f"parquet={tmp_path},question=q,answer=q,id=a")


def test_row_groups_over_the_limit_are_refused(tmp_path):
    write(tmp_path / "a.parquet", {"image": [{"bytes": bytes(5000), "path": None}] * 4, "conversations": [LOOK] * 4})
    assert len(ParquetRows([tmp_path / "a.parquet"], ["conversations"], max_row_group_bytes=5000)) == 4
    with pytest.raises(ValueError, match=r"a\.parquet: row group 0 unpacks to \d+ bytes, more than 5000"):
        ParquetRows([tmp_path / "a.parquet"], ["image"], max_row_group_bytes=5000)


def test_missing_files_and_columns(tmp_path):
    with pytest.raises(ValueError, match=r"expected \*\*/\*\.parquet, found none"):
        open_source(f"parquet={tmp_path}")
    write(tmp_path / "a.parquet", {"image": [None], "text": ["x"]})
    for options, message in {
        "": "no column conversations; there are image, text",
        ",question=text": "both name a column, or neither",
        ",question=text,answer=text,id=key": "not every file has a column key",
        ",files=/*.parquet": "expected a pattern relative to",
    }.items():
        with pytest.raises(ValueError, match=message):
            open_source(f"parquet={tmp_path}{options}")


def _read_all(rows, answers):
    answers.put([rows[index]["n"] for index in range(len(rows))])


def test_forked_processes_read_on_their_own(tmp_path):
    pq.write_table(pa.table({"n": list(range(60))}), tmp_path / "a.parquet", row_group_size=7)
    rows = ParquetRows([tmp_path / "a.parquet"], ["n"])
    assert rows[30] == {"n": 30}  # a row group is in memory before the fork
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_read_all, args=(rows, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        assert answers.get(timeout=60) == list(range(60))
    for process in processes:
        process.join()


def test_a_failed_row_group_leaves_nothing_behind(tmp_path):
    pq.write_table(pa.table({"n": list(range(4))}), tmp_path / "a.parquet", row_group_size=2)
    rows = ParquetRows([tmp_path / "a.parquet"], ["n"])
    assert rows[0] == {"n": 0}
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(SampleError, match="row group 1 cannot be read"):
        rows[2]
