"""The demo's examples and command line."""

import json
import socket
import sys

import pytest

from examples.demo.__main__ import main, parse_arguments
from examples.demo.example_questions import example_questions


def test_examples_are_the_last_question_of_each_picture(demo_folder):
    images = demo_folder / "data/images"
    assert example_questions(demo_folder / "data") == [
        (images / "one.png", "what is this?"),
        (images / "two.png", "and this?"),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "questions.json"),
        ([{"id": "a", "image": "none.png", "conversations": []}], "'none.png' is not a file"),
        ([], "questions.json"),
    ],
)
def test_examples_that_cannot_be_offered(tmp_path, capsys, rows, message):
    (tmp_path / "images").mkdir()
    if rows is not None:
        (tmp_path / "questions.json").write_text(json.dumps(rows))
    pytest.importorskip("gradio")
    assert main(["release", "--examples", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and message in said.err


def test_defaults_keep_the_page_on_this_machine():
    options = parse_arguments(["release"])
    assert (options.host, options.share) == ("127.0.0.1", False)


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "python -m examples.demo quickstart/release" in capsys.readouterr().out


def test_without_gradio_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["release"]) == 2
    assert capsys.readouterr().err == "error: the web page needs gradio: pip install -e '.[demo]'\n"


def test_a_folder_that_is_no_release(tmp_path, capsys):
    pytest.importorskip("gradio")
    assert main([str(tmp_path)]) == 2
    assert "not a release, it has no config.json" in capsys.readouterr().err


def test_a_port_that_is_taken(demo_folder, capsys):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([str(demo_folder / "release"), "--port", str(port)]) == 2
    assert str(port) in capsys.readouterr().err
