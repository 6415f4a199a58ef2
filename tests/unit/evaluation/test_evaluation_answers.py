"""Files of answers after a kill, fingerprints, and the batch that asks."""

import numpy as np
import pytest
from PIL import Image

from megatron_focus.evaluation.answer_file import Answered, append_answers, read_answers
from megatron_focus.evaluation.asking import ask
from megatron_focus.evaluation.fingerprint import processor_sha256, weights_sample_sha256
from megatron_focus.evaluation.visual_tokens import VisualTokenCounts
from megatron_focus.inference.answering import Decoding, answer
from megatron_focus.inference.conversation import Turn
from megatron_focus.inference.release_folder import load_release
from tests.unit.release import tiny_models as tiny

COUNTS = VisualTokenCounts(baseline=10, after_vision=6, after_text=4, effective=4.5)
ANSWERS = [
    Answered(index=3, question_id="ä", answer="a\nb", visual_tokens=COUNTS, seconds=0.25),
    Answered(index=0, question_id=7, not_asked="no such file"),
]


def test_every_torn_line_is_removed(tmp_path):
    whole = tmp_path / "whole"
    append_answers(whole, ANSWERS)
    data = whole.read_bytes()
    for cut in range(len(data) + 1):
        file = tmp_path / "torn"
        file.write_bytes(data[:cut])
        lines = data[:cut].count(b"\n")
        assert read_answers([file]) == {answer.index: answer for answer in ANSWERS[:lines]}
        more = Answered(index=9, question_id=9, answer="x")
        append_answers(file, [more])
        assert read_answers([file]) == {answer.index: answer for answer in [*ANSWERS[:lines], more]}


def test_a_later_answer_replaces_one_that_was_not_asked(tmp_path):
    late = Answered(index=0, question_id=7, answer="yes")
    append_answers(tmp_path / "a", [late])
    append_answers(tmp_path / "b", ANSWERS)
    for order in ("ab", "ba"):
        assert read_answers(tmp_path / name for name in order) == {0: late, 3: ANSWERS[0]}


@pytest.mark.parametrize("line", ["{}", "[]", "{", '{"index": 1, "question_id": 1, "visual_tokens": {"x": 1}}'])
def test_a_damaged_line_is_named(tmp_path, line):
    file = tmp_path / "a"
    append_answers(file, ANSWERS[:1])
    file.write_bytes(file.read_bytes() + line.encode() + b"\n")
    with pytest.raises(ValueError, match=f"{file}, line 2: damaged"):
        read_answers([file])


def test_weights_of_one_shape_are_told_apart(tmp_path):
    weights = np.zeros(1_000_000, dtype=np.float32)
    prints = set()
    for change in (0, 1):
        (tmp_path / "model.safetensors").write_bytes((weights + change).tobytes())
        prints.add(weights_sample_sha256(tmp_path))
    assert len(prints) == 2
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert weights_sample_sha256(tmp_path) not in prints


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "processor_config.json"])
def test_another_way_to_read_questions_is_told_apart(tmp_path, name):
    tiny.write_release(tmp_path / "release")
    before = processor_sha256(tmp_path / "release")
    (tmp_path / "release" / "README.md").write_text("a model card")
    assert processor_sha256(tmp_path / "release") == before
    file = tmp_path / "release" / name
    file.write_bytes(file.read_bytes() + b"\n")
    assert processor_sha256(tmp_path / "release") != before


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asking") / "release"
    tiny.write_release(folder)
    return load_release(folder, "cpu")


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


ASKED = [
    Turn("user", "what is this?", (picture(61, 97),)),
    Turn("user", "hello there", ()),
    Turn("user", "compare these two, please", (picture(150, 40), picture(100, 100))),
]


def test_a_ragged_batch_is_answered_as_each_alone(release):
    """Against ``tools/generate.py``'s way of asking, which pads nothing."""
    replies = ask(release, ASKED, 6)
    layers = release.model.config.text_config.num_hidden_layers
    for asked, reply in zip(ASKED, replies, strict=True):
        alone = answer(release, [Turn("user", asked.text, asked.pictures)], Decoding(6), lambda text: None)
        assert reply.text == alone.text
        assert reply.cut == (alone.new_tokens == 6)
        kept, read = (sum(getattr(image, name) for image in alone.selection) for name in ("num_kept", "num_tokens"))
        assert (reply.tokens.after_text, reply.tokens.after_vision) == (kept, read)
        drop = release.model.samplers.text_layer
        # m - n + i n / L of the design, with the n tokens that were dropped before layer i.
        assert reply.tokens.effective == pytest.approx(read - (read - kept) * (1 - drop / layers))
    assert replies[1].tokens == VisualTokenCounts() and replies[1].tokens.shares() == {}
    assert len({reply.seconds for reply in replies}) == 1 and replies[0].seconds > 0


def test_without_samplers_all_tokens_are_there(release):
    release.model.set_samplers(vision=False, text=False)
    try:
        tokens = ask(release, ASKED[:1], 1)[0].tokens
    finally:
        release.model.set_samplers(vision=True, text=True)
    assert tokens.baseline == tokens.after_vision == tokens.after_text == tokens.effective > 0
    assert set(tokens.shares().values()) == {1.0}


def test_an_answer_that_ends_is_not_cut(release, monkeypatch):
    monkeypatch.setattr(release.model.generation_config, "eos_token_id", list(range(tiny.VOCAB)))
    assert [reply.cut for reply in ask(release, ASKED, 6)] == [False] * 3
    monkeypatch.setattr(release.model.generation_config, "eos_token_id", None)
    assert [reply.cut for reply in ask(release, ASKED, 2)] == [True] * 3
