"""Parts of the model on several devices, as ``device_map="auto"`` puts them, compute what they compute on one."""

import copy

import pytest
import torch

from tests.unit.release import tiny_models as tiny
from tests.unit.release.several_devices import HOME, SECOND, THIRD, Places, offload, put


def spread(model):
    """Vision on a device of its own, the first two layers with the embedding, the others elsewhere."""
    model = copy.deepcopy(model)
    inner = model.model
    for part in (inner.vision_tower, inner.multi_modal_projector):
        put(part, THIRD)
    inner.image_newline._place = HOME
    for part in (inner.vision_sampler, *inner.language_model.layers[2:], inner.language_model.norm, model.lm_head):
        put(part, SECOND)
    for part in (inner.language_model.embed_tokens, inner.language_model.rotary_emb, *inner.language_model.layers[:2]):
        put(part, HOME)
    return model


@pytest.fixture(scope="module")
def models():
    model = tiny.focus_model(vision={}, text={})
    return model, spread(model)


@pytest.fixture
def inputs():
    return tiny.batch([tiny.ONE, tiny.TWO, tiny.TURNS, tiny.TEXT])


@pytest.mark.parametrize("layer", [1, 2, 3], ids=["with the inputs", "the first elsewhere", "behind it"])
def test_the_drop_on_any_device(models, inputs, layer):
    for model in models:
        model.set_samplers(text_layer=layer)
    one, several = models
    labels = torch.where(inputs["input_ids"] == tiny.IMAGE, -100, inputs["input_ids"])
    labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    with torch.no_grad():
        expected = one(**inputs, labels=labels, output_selection=True)
        with Places():
            found = several(**inputs, labels=labels, output_selection=True)
            assert found.logits.device == SECOND
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.loss, expected.loss)
    assert torch.equal(found.input_positions, expected.input_positions)
    for ours, theirs in zip(found.selection, expected.selection, strict=True):
        assert torch.equal(ours.kept, theirs.kept) and torch.equal(ours.footprint, theirs.footprint)
        assert torch.allclose(ours.importance, theirs.importance, equal_nan=True, atol=0, rtol=0)
    assert sum(s.num_kept < s.num_tokens for s in expected.selection) > 1

    ask = {"max_new_tokens": 4, "do_sample": False}
    for beams in (1, 2):
        expected_ids = one.generate(**inputs, **ask, num_beams=beams)
        with Places():
            found_ids = several.generate(**inputs, **ask, num_beams=beams)
        assert torch.equal(found_ids, expected_ids)


def test_weights_that_are_loaded_when_they_are_needed(models, inputs):
    one = copy.deepcopy(models[0])
    one.set_samplers(text_layer=2)
    expected = one.generate(**inputs, max_new_tokens=4, do_sample=False)
    inner = one.model
    for part in (inner.vision_tower, inner.vision_sampler, *inner.language_model.layers, one.lm_head):
        offload(part)
    assert torch.equal(one.generate(**inputs, max_new_tokens=4, do_sample=False), expected)


def test_a_newline_that_is_nowhere(models, inputs):
    model = copy.deepcopy(models[0])
    model.model.image_newline = torch.nn.Parameter(model.model.image_newline.to("meta"))
    with pytest.raises(ValueError, match=r"image_newline cannot be offloaded"):
        model(**inputs)


def test_without_samplers(models, inputs):
    one, several = models
    for model in models:
        model.set_samplers(vision=False, text=False)
    with torch.no_grad():
        expected = one(**inputs).logits
        with Places():
            found = several(**inputs).logits
    assert torch.equal(found, expected)
    for model in models:
        model.set_samplers(vision=True, text=True)


def test_places_are_as_strict_as_devices():
    with Places():
        here, there = torch.ones(3), torch.ones(3, device=SECOND)
        assert (here.device, there.device, (there + 1).device, here.to(THIRD).device) == (HOME, SECOND, SECOND, THIRD)
        assert here.device == HOME  # as before
        for mix in (lambda: here + there, lambda: here[there > 0], lambda: torch.cat([here, there])):
            with pytest.raises(RuntimeError, match="same device"):
                mix()
