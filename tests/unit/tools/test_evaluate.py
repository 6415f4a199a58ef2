"""``tools/evaluate.py`` with a small release: scores, arrays, restarts, and input that cannot be used."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import LlavaNextProcessor

from megatron_focus.conversion.model_card import read_results
from megatron_focus.evaluation import part as part_module
from megatron_focus.inference.answering import Decoding, Turn, answer
from megatron_focus.inference.release_folder import load_release
from tests.unit.release import tiny_models as tiny
from tools.evaluate import main

TEXTS = [("what is this?", "one.png"), ("hello", None), ("and this?", ["two.png", "one.png"]), ("where?", "two.png")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A release, two images, and questions whose true answers are what the release says, but for the last two."""
    place = tmp_path_factory.mktemp("evaluate")
    tiny.write_release(place / "release")
    (place / "images").mkdir()
    for name, size in {"one": (61, 97, 3), "two": (150, 40, 3)}.items():
        pixels = np.random.default_rng(size[0]).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(place / "images" / f"{name}.png")
    release = load_release(place / "release", "cpu")
    rows = []
    for number in range(10):
        text, image = TEXTS[number % 4]
        text = f"{number} {text}"
        names = [] if image is None else [image] if isinstance(image, str) else image
        pictures = tuple(Image.open(place / "images" / name) for name in names)
        said = answer(release, [Turn("user", text, pictures)], Decoding(5), lambda piece: None).text
        row = {"question_id": number // 2, "text": text, "answer": said if number < 8 else "something else altogether"}
        rows.append(row | ({"image": image} if image is not None else {}))
    write_rows(place / "questions.jsonl", rows)
    return place


def write_rows(file: Path, rows) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read_rows(file: Path):
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(folder, output, capsys, *arguments: str, questions=None, metric="anls") -> tuple[int, str, str]:
    files = ["--questions", str(questions or folder / "questions.jsonl"), "--images", str(folder / "images")]
    begin = [str(folder / "release"), *files, "--metric", metric, "--output", str(output), "--max-new-tokens", "5"]
    code = main([*begin, *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def without_times(output: Path):
    rows = read_rows(output / "answers.jsonl")
    info = json.loads((output / "evaluation.json").read_text())
    assert all(row.pop("seconds") >= 0 for row in rows) and info.pop("seconds_per_question") > 0
    assert info.pop("name") == output.name
    return rows, info


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "bench"
    files = ["--questions", str(folder / "questions.jsonl"), "--images", str(folder / "images")]
    options = ["--metric", "anls", "--output", str(output), "--max-new-tokens", "5", "--batch-size", "2"]
    assert main([str(folder / "release"), *files, *options]) == 0
    return output


def test_scores_and_files(folder, undisturbed):
    rows, info = without_times(undisturbed)
    assert [row["score"] for row in rows] == [1.0] * 8 + [0.0] * 2
    assert [row["question_id"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert (info["score"], info["questions"], info["not_asked"], info["metric"]) == (80.0, 10, [], "ANLS")
    counts, tokens = [row["visual_tokens"] for row in rows], info["visual_tokens"]
    for key in ("baseline", "after_vision", "after_text"):
        assert tokens[key] == sum(count[key] for count in counts)
    assert tokens["baseline"] > tokens["after_vision"] > tokens["effective"] > tokens["after_text"] > 0
    trained = json.loads((folder / "release" / "config.json").read_text())["text_sampler"]
    samplers = info["settings"]["samplers"]
    assert (samplers["gamma"], samplers["text_layer"]) == (trained["gamma"], trained["layer"])
    assert str(folder) not in (undisturbed / "evaluation.json").read_text()
    # What tools/export_hf.py reads for the model card.
    kept, results = read_results(undisturbed / "results.json")
    assert results == {"bench (ANLS)": 80.0}
    share = tokens["effective_share"]
    assert kept["bench: mean over its layers"] == pytest.approx(share, abs=5e-5)  # written with four digits
    assert share == pytest.approx(tokens["effective"] / tokens["baseline"], abs=1e-4)


def test_an_array_gives_the_same(folder, undisturbed, tmp_path, capsys):
    output = tmp_path / "bench"
    said = [
        run(folder, output, capsys, "--tasks", "3", "--task", task, "--batch-size", "2") for task in ("1", "0", "2")
    ]
    assert [code for code, _, _ in said] == [0, 0, 0]
    assert said[0][1] == "task 1 of 3 has answered its 3 questions; the last one to end writes the results\n"
    assert "ANLS 80.00 % over 10 questions" in said[2][1] and "of LLaVA-NeXT's visual tokens" in said[2][1]
    assert without_times(output) == without_times(undisturbed)
    assert len(list((output / "parts").iterdir())) == 3
    # The same line once more changes nothing.
    before = {file: file.read_bytes() for file in output.rglob("*.json*")}
    assert run(folder, output, capsys, "--tasks", "3", "--task", "0", "--batch-size", "2")[0] == 0
    assert {file: file.read_bytes() for file in output.rglob("*.json*")} == before


def test_a_stopped_task_goes_on(folder, undisturbed, tmp_path, capsys, monkeypatch):
    output = tmp_path / "bench"
    sizes = []

    def ask(release, batch, max_new_tokens, real=part_module.ask):
        sizes.append(len(batch))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return real(release, batch, max_new_tokens)

    monkeypatch.setattr(part_module, "ask", ask)
    code, _, err = run(folder, output, capsys, "--batch-size", "4")
    assert code == 1 and f"the same command goes on with {output}" in err
    [file] = (output / "parts").iterdir()
    assert len(read_rows(file)) == 8 and not (output / "results.json").exists()
    # As if it had been killed while it wrote the last line.
    file.write_bytes(file.read_bytes()[:-20])
    monkeypatch.setattr(part_module, "ask", lambda *args, real=ask: real(*args))
    code, out, _ = run(folder, output, capsys, "--batch-size", "4")
    assert code == 0 and "over 10 questions" in out
    assert sizes[3:] == [4, 2]  # the batch of the torn line whole, and the last one; the first is not asked again
    assert [row["index"] for row in read_rows(file)] == list(range(10))
    assert without_times(output) == without_times(undisturbed)


def test_an_array_of_another_size_goes_on(folder, undisturbed, tmp_path, capsys):
    output = tmp_path / "bench"
    run(folder, output, capsys, "--tasks", "3", "--task", "1")
    code, out, _ = run(folder, output, capsys)
    assert code == 0 and "over 10 questions" in out
    indices = [{row["index"] for row in read_rows(file)} for file in (output / "parts").iterdir()]
    assert sorted(map(len, indices)) == [3, 7] and not set.intersection(*indices)
    rows = without_times(output)[0]
    assert [row["answer"] for row in rows] == [row["answer"] for row in without_times(undisturbed)[0]]


def test_samplers_are_set_and_recorded(folder, undisturbed, tmp_path, capsys):
    full = without_times(undisturbed)[1]["visual_tokens"]
    counts = {}
    for name, options in {
        "gamma": ["--gamma", "0.2", "--text-layer", "0"],
        "no text": ["--no-text-sampler"],
        "none": ["--no-text-sampler", "--no-vision-sampler"],
    }.items():
        assert run(folder, tmp_path / name, capsys, "--batch-size", "5", *options)[0] == 0
        info = json.loads((tmp_path / name / "evaluation.json").read_text())
        counts[name], settings = info["visual_tokens"], info["settings"]["samplers"]
        assert (settings["vision"], settings["text"]) == (name != "none", name == "gamma")
    assert counts["gamma"]["effective"] == counts["gamma"]["after_text"] < full["after_text"]
    assert counts["no text"]["effective"] == counts["no text"]["after_vision"] == full["after_vision"]
    assert counts["none"]["effective"] == full["baseline"] and counts["none"]["effective_share"] == 1


def test_bad_questions(folder, tmp_path, capsys):
    rows = read_rows(folder / "questions.jsonl")
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    (images / "torn.png").write_bytes((images / "one.png").read_bytes()[:300])
    rows[3]["image"] = "gone.png"
    rows[5]["text"] = "is <image> a token?"
    rows[6]["image"] = "torn.png"
    questions = write_rows(tmp_path / "q.jsonl", rows)
    questions.write_text(questions.read_text() + '{"question_id": 99\n')
    output = tmp_path / "bench"
    options = ["--images", str(images), "--batch-size", "2"]
    code, out, err = run(folder, output, capsys, *options, questions=questions)
    assert (code, out) == (2, "") and not output.exists()
    assert f"error: {questions}, line 4, question 1: image {images / 'gone.png'}: no such file" in err
    code, out, _ = run(folder, output, capsys, *options, "--on-bad-question", "skip", questions=questions)
    assert code == 0 and "over 11 questions, 4 of them not asked and counted as 0 (see evaluation.json)" in out
    info = json.loads((output / "evaluation.json").read_text())
    assert info["score"] == pytest.approx(100 * 5 / 11)
    parts = ["line 4, question 1: image", "line 6, question 2: the text has '<image>'", "line 7, question 3: image"]
    for reason, expected in zip(info["not_asked"], [*parts, "line 11: not JSON"], strict=True):
        assert f"{questions}, {expected}" in reason
    # Repaired images are asked when the same command is given again.
    shutil.copy(images / "one.png", images / "torn.png")
    code, out, _ = run(folder, output, capsys, *options, "--on-bad-question", "skip", questions=questions)
    assert code == 0 and "3 of them not asked" in out


def test_an_unreadable_image_stops_a_strict_run_and_keeps_what_was_answered(folder, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    (images / "two.png").write_bytes(b"no picture")
    code, out, err = run(folder, tmp_path / "bench", capsys, "--images", str(images))
    assert (code, out) == (2, "")
    assert f"questions.jsonl, line 3, question 1: image {images / 'two.png'}: " in err
    [file] = (tmp_path / "bench" / "parts").iterdir()
    assert [row["index"] for row in read_rows(file)] == [0, 1]


def test_another_evaluation_is_refused(folder, undisturbed, tmp_path, capsys):
    output = tmp_path / "bench"
    shutil.copytree(undisturbed, output)
    before = {file: file.read_bytes() for file in output.rglob("*.json*")}
    code, _, err = run(folder, output, capsys, "--gamma", "0.5", metric="exact")
    assert code == 2 and "metric was 'anls', is now 'exact'" in err and "samplers was" in err
    assert {file: file.read_bytes() for file in output.rglob("*.json*")} == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    code, _, err = run(folder, tmp_path / "full", capsys)
    assert code == 2 and "holds thesis.tex" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "/no/such"], "/no/such: no such folder of images"),
        (["--device", "abacus"], "device 'abacus' is none of torch's"),
        (["--text-layer", "9"], "text_layer is 9; it must be one of the 4 layers"),
        (["--questions", "/no/such.json"], "/no/such.json: cannot be read"),
        (["--metric", "vqa"], "line 1, question 0: answers: metric vqa compares with the answers of 10 people"),
    ],
)
def test_refusals(folder, tmp_path, capsys, arguments, message):
    code, out, err = run(folder, tmp_path / "bench", capsys, *arguments)
    assert (code, out) == (2, "") and not (tmp_path / "bench").exists()
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_a_full_disk_is_worth_another_try(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    code, _, err = run(folder, tmp_path / "file" / "bench", capsys)
    assert code == 1 and "error: " in err and "Not a directory" in err


def _away(*arguments, **options):
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("on_bad_question", ["error", "skip"])
def test_an_image_that_cannot_be_read_for_now(folder, tmp_path, capsys, monkeypatch, on_bad_question):
    opened = Path.open

    def open_file(path, *arguments, **options):
        return _away() if path.suffix == ".png" else opened(path, *arguments, **options)

    output, options = tmp_path / "bench", ["--on-bad-question", on_bad_question]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_file)
        code, _, err = run(folder, output, capsys, *options)
    assert code == 1 and f"error: image {folder / 'images' / 'one.png'}: Input/output error" in err
    assert list((output / "parts").iterdir()) == []  # no question was noted as a bad one
    code, out, _ = run(folder, output, capsys, *options)
    assert code == 0 and "not asked" not in out


def test_a_release_that_cannot_be_read_for_now(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(LlavaNextProcessor, "from_pretrained", _away)
    code, _, err = run(folder, tmp_path / "bench", capsys)
    assert code == 1 and f"error: {folder / 'release'}: [Errno 5] Input/output error" in err


def test_a_release_that_lacks_its_tokenizer(folder, tmp_path, capsys):
    shutil.copytree(folder / "release", tmp_path / "release")
    for file in (tmp_path / "release").glob("tokenizer*"):
        file.unlink()
    files = ["--questions", str(folder / "questions.jsonl"), "--images", str(folder / "images")]
    options = ["--metric", "anls", "--output", str(tmp_path / "bench")]
    assert main([str(tmp_path / "release"), *files, *options]) == 2
    assert f"error: {tmp_path / 'release'}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gamma", "0.5", "--no-text-sampler"], "do not go with --no-text-sampler"),
        (["--batch-size", "0"], "--batch-size: must be at least 1"),
        (["--task", "2", "--tasks", "2"], "--task: must be from 0 to 1 with --tasks 2, not 2"),
    ],
)
def test_command_lines_that_make_no_sense(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(["r", "--questions", "q", "--metric", "exact", "--output", "o", *arguments])
    assert message in capsys.readouterr().err
