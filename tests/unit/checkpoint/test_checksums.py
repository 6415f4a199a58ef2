import subprocess

import pytest

from megatron_focus.checkpoint.checksums import SUMS_FILE, read_sums, write_sums


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
