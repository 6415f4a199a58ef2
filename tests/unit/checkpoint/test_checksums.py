import subprocess

import pytest

from megatron_focus.checkpoint.checksums import ALWAYS, SUMS_FILE, CheckedFiles, read_sums, write_sums


def test_sums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "a").write_bytes(b"weights" * 100_000)
    (tmp_path / "b c").write_bytes(b"")
    write_sums(tmp_path, ["b c", "a"], SUMS_FILE)
    theirs = subprocess.run(["sha256sum", "a", "b c"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert (tmp_path / SUMS_FILE).read_text() == theirs
    assert list(read_sums(tmp_path / SUMS_FILE)) == ["a", "b c"]


@pytest.mark.parametrize("line", ["", "abc  file", "0" * 64 + " file", "0" * 64 + "  ../file", "0" * 64 + "  "])
def test_a_line_that_is_no_sum_is_named(tmp_path, line):
    (tmp_path / SUMS_FILE).write_text("0" * 64 + "  good\n" + line + "\n")
    with pytest.raises(ValueError, match=r"SHA256SUMS, line 2"):
        read_sums(tmp_path / SUMS_FILE)


@pytest.fixture
def folder(tmp_path):
    for name in (*ALWAYS, "common.pt", "one.distcp", "two.distcp"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    write_sums(tmp_path, [path.name for path in tmp_path.iterdir()], SUMS_FILE)
    return tmp_path


def test_a_file_is_compared_before_it_is_used(folder):
    files = CheckedFiles(folder)
    assert files.names() == sorted([*ALWAYS, "common.pt", "one.distcp", "two.distcp"])
    files.check(["one.distcp"])
    (folder / "one.distcp").write_bytes(b"changed")
    files.check(["one.distcp"])  # read once: large files are used for many tensors
    for damage in (lambda path: path.write_bytes(b"changed"), lambda path: path.unlink()):
        damage(folder / "two.distcp")
        with pytest.raises(ValueError, match=f"{folder} is damaged: two.distcp is not what was written"):
            files.check(["one.distcp", "two.distcp"])
    with pytest.raises(ValueError, match=r"does not list three\.distcp"):
        files.check(["three.distcp"])
    (folder / "two.distcp").mkdir()
    with pytest.raises(OSError, match=r"cannot be read: two.distcp \(Is a directory\)"):
        files.check(["two.distcp"])


def test_sums_that_cannot_be_used(folder):
    (folder / SUMS_FILE).write_text("")
    with pytest.raises(ValueError, match=r"is damaged: SHA256SUMS does not list .metadata, metadata.json, common.pt"):
        CheckedFiles(folder)
    write_sums(folder, [*ALWAYS, "common.pt", "two.distcp"], SUMS_FILE)  # a file that is there, and not in the list
    with pytest.raises(ValueError, match=r"is damaged: SHA256SUMS does not list one.distcp$"):
        CheckedFiles(folder)
    (folder / SUMS_FILE).unlink()
    (folder / "one.distcp").write_bytes(b"changed")
    assert CheckedFiles(folder).names() == []
    CheckedFiles(folder).check(["one.distcp", "three.distcp"])  # nothing to compare them with
