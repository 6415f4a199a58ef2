"""What the demo shows while a question is answered, from a small release, without a page."""

from itertools import pairwise
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image

from examples.demo import upload
from examples.demo.asking import UNCOMPRESSED, Asker, Samplers, trained_samplers
from examples.demo.comparison import token_counts
from examples.demo.conversation import MAX_QUESTION, NOTHING_TO_COMPARE, Request, respond
from megatron_focus.inference.answering import Decoding

SAMPLERS = Samplers(vision=True, text=True, gamma=0.4, text_layer=1)
LAYERS = 4


def shown(asker, picture, question="what is this?", samplers=SAMPLERS, compare=True):
    return list(respond(asker, Request(picture, question, samplers, compare), Event()))


def test_everything_is_shown(asker, picture_file):
    before = asker.release.model.samplers
    moments = shown(asker, picture_file)
    assert asker.release.model.samplers == before
    last = moments[-1]
    assert (last.status, last.error) == ("", "")
    # The answer grows until it is whole, and only then the other model is asked.
    for earlier, later in pairwise(moments):
        assert later.answer.strip().startswith(earlier.answer.strip())
    assert len({moment.answer for moment in moments}) > 2
    begun = [moment for moment in moments if moment.plain_answer]
    assert begun and all(moment.answer == last.answer and moment.rows for moment in begun)
    assert [row.off == "" for row in begun[0].rows] == [True] * len(last.rows)
    assert np.asarray(last.selection.convert("L")).std() > 10
    assert all(moment.selection is None for moment in moments[:-1])


def test_the_table_counts_what_the_layers_read(asker, picture_file):
    last = shown(asker, picture_file)[-1]
    measured = _measured(asker, picture_file, SAMPLERS)
    [selection] = measured.answer.selection
    read, kept, baseline = selection.num_tokens, selection.num_kept, selection.baseline_tokens
    assert kept < read < baseline
    per_layer = [read if layer < SAMPLERS.text_layer else kept for layer in range(LAYERS)]
    effective = sum(per_layer) / LAYERS
    assert token_counts(measured, LAYERS).effective == pytest.approx(effective)
    numbers = [(row.as_set, row.off, row.ratio) for row in last.rows[:4]]
    assert numbers == [
        (f"{count:,.0f}", f"{baseline:,}", f"{count / baseline:.1%}") for count in (baseline, read, kept, effective)
    ]
    assert last.rows[2].name.endswith("from layer 1 on")
    prefill, token = last.rows[4:6]
    for row in (prefill, token):
        faster = float(row.off.split()[0].replace(",", "")) / float(row.as_set.split()[0].replace(",", ""))
        # Shown times are rounded to 0.1 ms, the ratio was taken before; the shortest are about 1 ms.
        assert float(row.ratio.split()[0]) == pytest.approx(faster, rel=0.15)


def _measured(asker, picture, samplers):
    stream = asker.ask(Image.open(picture).convert("RGB"), "what is this?", samplers)
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value


def test_the_other_answer_is_the_uncompressed_models(asker, picture_file):
    last = shown(asker, picture_file)[-1]
    assert last.plain_answer == _measured(asker, picture_file, UNCOMPRESSED).answer.text


def test_without_comparison(asker, picture_file):
    last = shown(asker, picture_file, compare=False)[-1]
    assert last.plain_answer == "" and all(row.off == "" for row in last.rows)
    assert last.selection is not None


def test_a_stop_ends_the_answer(demo_release, picture_file):
    patient, stop, moments = Asker(demo_release, Decoding(3000)), Event(), []
    for moment in respond(patient, Request(picture_file, "what?", SAMPLERS, True), stop):
        moments.append(moment)
        if moment.answer:
            stop.set()
    assert moments[-1].status == "Stopped." and moments[-1].answer == moments[-2].answer
    assert moments[-1].rows == () and moments[-1].selection is None
    patient.executor.shutdown()  # waits for what runs
    assert demo_release.model.samplers.gamma == 0.6


def test_nothing_to_compare_with(asker, picture_file):
    moments = shown(asker, picture_file, samplers=UNCOMPRESSED)
    assert moments[-1].status == NOTHING_TO_COMPARE
    assert all(moment.plain_answer == "" for moment in moments)
    assert {row.ratio for row in moments[-1].rows[:4]} == {"100.0%"}


class _TooSmall(Asker):
    """Its device holds the compressed model's cache alone."""

    def ask(self, picture, question, samplers):
        if samplers == UNCOMPRESSED:
            raise torch.OutOfMemoryError("used up")
        return super().ask(picture, question, samplers)


def test_memory_for_the_answer_but_not_for_the_comparison(demo_release, asker, picture_file):
    last = shown(_TooSmall(demo_release, asker.decoding), picture_file)[-1]
    assert last.error == "The uncompressed model needs more memory than the device has."
    assert last.answer and last.rows and last.selection is not None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("used up"), "The memory of the device is used up: try a smaller picture."),
        (RuntimeError("a secret"), "The program failed; its terminal says why."),
    ],
)
def test_a_model_that_fails(demo_release, asker, picture_file, monkeypatch, capsys, error, message):
    def fail(*arguments, **others):
        raise error

    monkeypatch.setattr(demo_release.model.model, "encode_images", fail)
    last = shown(asker, picture_file)[-1]
    assert (last.error, last.status, last.answer) == (message, "", "")
    assert ("a secret" in capsys.readouterr().err) == (type(error) is RuntimeError)


@pytest.fixture
def broken(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.effect_noise((40, 40), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    return tmp_path


def test_requests_that_cannot_be_answered(asker, picture_file, broken, monkeypatch):
    monkeypatch.setattr(upload, "MAX_PIXELS", 97 * 61)
    Image.new("RGB", (97, 62)).save(broken / "large.png")
    cases = [
        ((None, "what?"), "Choose a picture first."),
        ((picture_file, " "), "Type a question first."),
        ((picture_file, "a" * (MAX_QUESTION + 1)), "The question has 2,001 letters; at most 2,000 are read."),
        ((picture_file, "a <image> here"), "stands for a picture"),
        ((broken / "text.png", "what?"), "Image text.png: not a readable"),
        ((broken / "cut.png", "what?"), "Image cut.png: cannot be decoded"),
        ((broken / "large.png", "what?"), "Image large.png: 97x62 is 6014 pixels"),
        ((picture_file, "what?", Samplers(True, True, 0.5, 4)), "Text_layer is 4"),
    ]
    for arguments, message in cases:
        last = shown(asker, *arguments)[-1]
        assert message in last.error and last.error.endswith(".") and not last.status
        assert str(broken) not in last.error, "folders of the server are nobody's business"
        assert last.answer == "" and last.selection is None
    monkeypatch.setattr(upload, "MAX_BYTES", 100)
    assert "one.png: more than" in shown(asker, picture_file)[-1].error
    assert trained_samplers(asker.release) == Samplers(True, True, 0.6, 2)
