"""The quickstart's picture of the selection, from a release in a folder."""

import numpy as np
import pytest
from PIL import Image

from examples.quickstart.picture import main
from tests.unit.release import tiny_models as tiny


def test_picture_of_a_release(tmp_path, capsys):
    tiny.write_release(tmp_path / "release")
    pixels = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    out = tmp_path / "out.png"
    arguments = ["--release", tmp_path / "release", "--image", tmp_path / "one.png", "--output", out]
    assert main([*map(str, arguments), "--question", "what?", "where?"]) == 0
    assert np.asarray(Image.open(out).convert("L")).std() > 10
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("what?  ") and said[-1] == f"wrote {out}"


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--question" in capsys.readouterr().out
