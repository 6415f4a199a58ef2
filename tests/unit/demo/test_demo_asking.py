"""The demo's questions to a small release: samplers for one question, streaming, times."""

from threading import Thread

import pytest
from PIL import Image

from examples.demo.asking import UNCOMPRESSED, Asker, Samplers, trained_samplers
from megatron_focus.inference.answering import Decoding, answer
from megatron_focus.inference.conversation import Turn
from megatron_focus.inference.release_folder import Release
from tests.unit.release import tiny_models as tiny

STRICT = Samplers(vision=True, text=True, gamma=0.2, text_layer=1)


@pytest.fixture(scope="module")
def picture(picture_file):
    return Image.open(picture_file).convert("RGB")


def asked(asker, picture, samplers, question="what is this?"):
    """The pieces of an answer, and the whole."""
    stream, pieces = asker.ask(picture, question, samplers), []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


@pytest.mark.parametrize("samplers", [STRICT, UNCOMPRESSED, Samplers(True, False, 0.5, 0)])
def test_the_answer_is_the_models_with_these_samplers(asker, picture, samplers):
    before = asker.release.model.samplers
    pieces, measured = asked(asker, picture, samplers)
    assert asker.release.model.samplers == before
    assert "".join(pieces).strip() == measured.answer.text

    model = asker.release.model
    try:
        model.set_samplers(**samplers.arguments())
        expected = answer(asker.release, [Turn("user", "what is this?", (picture,))], asker.decoding, lambda text: None)
    finally:
        model.model.samplers = before
    assert measured.answer.text == expected.text
    [got], [wanted] = measured.answer.selection, expected.selection
    assert got.kept.equal(wanted.kept) and got.drop_layer == wanted.drop_layer


def test_times_are_parts_of_the_whole(asker, picture):
    _, measured = asked(asker, picture, STRICT)
    given = measured.answer
    assert 0 < measured.prefill_seconds < given.first_seconds < given.seconds
    rest = measured.token_seconds * (given.new_tokens - 1)
    assert given.first_seconds + rest == pytest.approx(given.seconds)
    assert not asker.release.model._forward_pre_hooks


def test_samplers_are_as_before_after_an_error(asker, picture):
    before = asker.release.model.samplers
    with pytest.raises(ValueError, match="gamma is 0"):
        next(asker.ask(picture, "what?", Samplers(True, True, 0.0, 1)))
    with pytest.raises(ValueError, match="stands for a picture"):
        next(asker.ask(picture, "a <image> here", STRICT))
    assert asker.release.model.samplers == before


def test_samplers_are_as_before_after_a_stop(demo_release, picture):
    patient = Asker(demo_release, Decoding(200))
    before = demo_release.model.samplers
    stream = patient.ask(picture, "what is this?", STRICT)
    next(stream)
    assert demo_release.model.samplers.gamma == 0.2
    stream.close()
    patient.executor.shutdown()  # waits for what runs
    assert demo_release.model.samplers == before
    assert not demo_release.model._forward_pre_hooks


def test_questions_wait_for_each_other(asker, picture):
    alone = {samplers: asked(asker, picture, samplers)[1] for samplers in (STRICT, UNCOMPRESSED)}
    together = {}

    def ask(samplers):
        together[samplers] = asked(asker, picture, samplers)[1]

    threads = [Thread(target=ask, args=(samplers,)) for samplers in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for samplers, measured in alone.items():
        assert together[samplers].answer.text == measured.answer.text
        assert together[samplers].answer.selection[0].kept.equal(measured.answer.selection[0].kept)


def test_a_model_without_samplers(demo_release, picture):
    """It has no scales to go back to, and its text layer may lie outside of it."""
    model = tiny.focus_model(vision=None, text={"enabled": False, "layer": 40})
    model.generation_config.pad_token_id = tiny.PAD
    plain = Asker(Release(model, demo_release.processor), Decoding(3))
    assert trained_samplers(plain.release) == Samplers(False, False, 0.6, 3)
    plain.warm_up()
    before = model.samplers
    _, measured = asked(plain, picture, Samplers(False, True, 0.3, 1))
    assert model.samplers == before
    [selection] = measured.answer.selection
    assert selection.num_kept < selection.num_tokens == selection.baseline_tokens
