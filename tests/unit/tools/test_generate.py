"""``tools/generate.py`` with a small release: one answer, a chat, and input that cannot be used."""

import io
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_focus.inference.answering import Answer, Decoding, Turn, answer
from megatron_focus.inference.release_folder import load_release
from tests.unit.release import tiny_models as tiny
from tools.generate import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("generate")
    tiny.write_release(place / "release")
    for name, size in {"one": (61, 97, 3), "two": (150, 40, 3)}.items():
        pixels = np.random.default_rng(size[0]).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{name}.png")
    return place


@pytest.fixture(scope="module")
def release(folder):
    return load_release(folder / "release", "cpu")


def run(folder, capsys, *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and lines of the error output but for transformers' progress bar."""
    code = main([str(folder / "release"), "--max-new-tokens", "6", *arguments])
    said = capsys.readouterr()
    return code, said.out, [line for line in said.err.splitlines() if line and "Loading weights" not in line]


def test_one_question(folder, release, capsys):
    question = ["--image", str(folder / "one.png"), "--prompt", "what is this?"]
    code, out, err = run(folder, capsys, *question)
    assert code == 0
    turns = [Turn("user", "what is this?", (Image.open(folder / "one.png"),))]
    pieces = []
    expected = answer(release, turns, Decoding(6), pieces.append)
    assert out == "".join(pieces) + "\n"
    assert "".join(pieces).strip() == expected.text
    [selection] = expected.selection
    assert len(err) == 1
    assert err[0].startswith(f"kept {selection.num_kept} of {selection.baseline_tokens} visual tokens (")
    assert f"{expected.new_tokens} new tokens in " in err[0]


def test_the_answer_is_that_of_generate(folder, release):
    """Against the processor and ``generate`` as a user calls them."""
    picture = Image.open(folder / "one.png")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is this?"}]
    inputs = release.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = release.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    said = release.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    got = answer(release, [Turn("user", "what is this?", (picture,))], Decoding(6), lambda text: None)
    assert got.text == said.strip()
    assert got.new_tokens == ids.shape[1] - inputs["input_ids"].shape[1]
    assert 0 < got.first_seconds <= got.seconds


def test_samplers_change_what_is_kept(folder, capsys):
    question = ["--image", str(folder / "one.png"), str(folder / "two.png"), "--prompt", "compare"]
    kept, read = {}, {}
    for name, change in {
        "trained": [],
        "gamma": ["--gamma", "0.2"],
        "layer": ["--text-layer", "0", "--gamma", "0.2"],
        "scales": ["--scales", "4x4"],
        "no text": ["--no-text-sampler"],
        "none": ["--no-text-sampler", "--no-vision-sampler"],
    }.items():
        code, _, [line] = run(folder, capsys, *question, *change)
        assert code == 0
        kept[name] = int(line.split()[1])
        read[name] = int(re.search(r"(\d+) read", line)[1])
        assert ("from layer" in line) == (name not in ("no text", "none"))
    baseline = int(line.split()[3])
    assert kept["none"] == baseline > kept["no text"] > kept["trained"] > kept["gamma"] > 0
    assert read["scales"] < read["trained"] == read["gamma"] == read["layer"] == kept["no text"]


def test_sampling_follows_the_seed(folder, capsys):
    question = ["--prompt", "hello", "--temperature", "5"]
    said = [run(folder, capsys, *question, "--seed", seed)[1] for seed in ("1", "1", "2", "3")]
    assert said[0] == said[1]
    assert len(set(said)) > 1


def test_pictures_of_the_selection(folder, capsys, tmp_path):
    one, two = str(folder / "one.png"), str(folder / "two.png")
    code, _, err = run(folder, capsys, "--prompt", "what?", "--image", one, "--show-selection", str(tmp_path / "s.png"))
    assert code == 0 and err[-1] == f"wrote {tmp_path / 's.png'}"
    run(folder, capsys, "--prompt", "what?", "--image", one, two, "--show-selection", str(tmp_path / "both.png"))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"s.png", "both-1.png", "both-2.png"}
    assert all(np.asarray(Image.open(tmp_path / name).convert("L")).std() > 10 for name in names)


def chat(folder, capsys, monkeypatch, lines: list[str], *arguments: str):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    return run(folder, capsys, *arguments)


def test_chat(folder, release, capsys, monkeypatch):
    one, two = folder / "one.png", folder / "two.png"
    lines = ["what is this?", f"/image {two}", "and this?", "/reset", "hello", "/help", "/quit", "never asked"]
    code, out, err = chat(folder, capsys, monkeypatch, lines, "--image", str(one))
    assert code == 0
    # The same turns, each as a fresh prompt.
    turns, said = [], []
    for text, pictures in (("what is this?", [one]), ("and this?", [two]), ("hello", [])):
        turns = [] if text == "hello" else turns
        turns = [*turns, Turn("user", text, tuple(Image.open(picture) for picture in pictures))]
        pieces: list[str] = []
        said.append((answer(release, turns, Decoding(6), pieces.append), "".join(pieces)))
        turns = [*turns, Turn("assistant", said[-1][0].text)]
    shown = f"{two}: 40 x 150 pixels, goes with the next question\n"
    assert out.startswith(f"{said[0][1]}\n{shown}{said[1][1]}\nforgot the conversation\n{said[2][1]}\n/image PATH")
    counts = [line for line in err if line.startswith("kept")]
    kept = [sum(s.num_kept for s in given.selection) for given, _ in said[:2]]
    assert [int(line.split()[1]) for line in counts] == kept
    assert sum("new tokens in" in line for line in err) == 3


def test_chat_goes_on_after_errors(folder, capsys, monkeypatch):
    lines = ["/image", "/image /no/such.png", "/cats", "a <image> here", "", "hello"]
    code, _, err = chat(folder, capsys, monkeypatch, lines)
    assert code == 0
    assert err[:3] == [
        "error: /image needs a path or an address",
        "error: image /no/such.png: no such file",
        "error: no command /cats; /help lists them",
    ]
    assert err[3].startswith("error: the text has '<image>'")
    assert "new tokens in" in err[4]


def test_a_stopped_answer_is_forgotten(capsys):
    from megatron_focus.inference.chat import Chat

    asked = []

    def ask(turns):
        asked.append([turn.text for turn in turns])
        if len(asked) == 1:
            raise KeyboardInterrupt
        return Answer("yes", 1, [], 0.1, 0.1)

    talking = Chat(ask, [])
    for line in ("first", "second", "third"):
        assert talking.take(line)
    assert asked == [["first"], ["second"], ["second", "yes", "third"]]
    assert "stopped" in capsys.readouterr().out


def broken(folder, tmp_path, change):
    """A copy of the release with something wrong."""
    copy = tmp_path / "copy"
    shutil.copytree(folder / "release", copy)
    change(copy)
    return copy


def set_config(key, value):
    def change(copy):
        config = json.loads((copy / "config.json").read_text())
        config[key] = value
        (copy / "config.json").write_text(json.dumps(config))

    return change


def cut_weights(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "copy: no such folder"),
        (lambda copy: (copy / "config.json").unlink(), "copy: not a release, it has no config.json"),
        (lambda copy: (copy / "config.json").write_text("{"), "config.json: not json"),
        (set_config("model_type", "llava_next"), "model_type is 'llava_next' and not 'focus_llava'"),
        (set_config("vision_sampler", {"window": 3}), "vision_sampler.window is 3"),
        (lambda copy: (copy / "model.safetensors").unlink(), "no weights, it has no file *.safetensors"),
        (cut_weights, "copy: "),
        (lambda copy: (copy / "tokenizer.json").unlink(), "copy: "),
        (lambda copy: (copy / "processor_config.json").unlink(), "copy: "),
    ],
)
def test_a_folder_that_is_no_release(folder, tmp_path, capsys, change, message):
    copy = broken(folder, tmp_path, change)
    assert main([str(copy), "--prompt", "hello"]) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "abacus"], "device 'abacus' is none of torch's"),
        (["--image", "/no/such.png"], "image /no/such.png: no such file"),
        (["--image", "gopher://a/b"], "begin with http:// or https://"),
        (["--gamma", "0"], "gamma is 0.0; it must be a number above 0"),
        (["--text-layer", "9"], "text_layer is 9; it must be one of the 4 layers"),
        (["--scales", "9x9"], "scales is ['9x9']"),
    ],
)
def test_refusals(folder, capsys, arguments, message):
    code, out, err = run(folder, capsys, "--prompt", "hello", *arguments)
    assert (code, out) == (2, "")
    assert err[-1].startswith("error: ") and message in err[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gamma", "0.5", "--no-text-sampler"], "do not go with --no-text-sampler"),
        (["--scales", "1x1", "--no-vision-sampler"], "does not go with --no-vision-sampler"),
        (["--seed", "1"], "--seed goes with --temperature"),
        (["--temperature", "-1"], "must not be below 0"),
        (["--max-new-tokens", "0"], "must be at least 1"),
        (["--prompt", " "], "--prompt: is empty"),
        (["--prompt", "a", "--show-selection", "a.png"], "--show-selection needs --image"),
        (["--show-selection", "a.jpg"], "must end in .png"),
        (["--show-selection", "/no/such/a.png"], "no folder /no/such"),
    ],
)
def test_command_lines_that_make_no_sense(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(["release", *arguments])
    assert message in capsys.readouterr().err


def test_dtype(folder):
    assert load_release(folder / "release", "cpu").model.dtype == torch.float32
    assert load_release(folder / "release", "cpu", "bfloat16").model.dtype == torch.bfloat16
