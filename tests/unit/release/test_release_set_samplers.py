"""Samplers that are set anew on a loaded model, against models that were built so."""

import pytest
import torch
from transformers import LlavaNextForConditionalGeneration

from megatron_focus.release.modeling_focus_llava import FocusLlavaForConditionalGeneration
from tests.unit.release import tiny_models as tiny

PROMPTS = [tiny.ONE, tiny.TWO, tiny.TURNS, tiny.TEXT]
BOTH = {"vision": {}, "text": {"layer": 2, "gamma": 0.6}}


def built(vision, text, state) -> FocusLlavaForConditionalGeneration:
    model = tiny.focus_model(vision=vision, text=text)
    model.load_state_dict(state)
    return model


def equal_outputs(one, other, prompts) -> bool:
    inputs = tiny.batch(prompts)
    with torch.no_grad():
        a, b = one(**inputs), other(**inputs)
    return torch.equal(a.logits, b.logits) and torch.equal(a.input_positions, b.input_positions)


@pytest.mark.parametrize("prompts", [[tiny.TWO], PROMPTS], ids=["single", "ragged batch"])
@pytest.mark.parametrize(
    ("change", "vision", "text"),
    [
        ({"gamma": 0.3}, {}, {"gamma": 0.3}),
        ({"text_layer": 0}, {}, {"layer": 0, "gamma": 0.6}),
        ({"text": False}, {}, None),
        ({"text_layer": 3, "gamma": 0.8}, {}, {"layer": 3, "gamma": 0.8}),
    ],
)
def test_text_sampler(change, vision, text, prompts):
    model = tiny.focus_model(**BOTH)
    before = model(**tiny.batch(prompts)).logits
    model.set_samplers(**change)
    assert equal_outputs(model, built(vision, text, model.state_dict()), prompts)
    model.set_samplers(gamma=0.6, text_layer=2, text=True)
    assert torch.equal(model(**tiny.batch(prompts)).logits, before)


@pytest.mark.parametrize("gate", ["paper", "switch"])
@pytest.mark.parametrize("scales", [["2x2"], ["4x4", "1x1"], ["1x1", "2x2", "4x4"]])
def test_scales_are_those_of_a_selector_that_has_no_others(scales, gate):
    """The rows of the other scales taken out of the selector."""
    model = tiny.focus_model(vision={"gate": gate}, text={})
    model.set_samplers(scales=scales)
    ordered = [scale for scale in ["1x1", "2x2", "4x4"] if scale in scales]
    rows = [["1x1", "2x2", "4x4"].index(scale) for scale in ordered]
    state = dict(model.state_dict())
    for name in ("weight", "bias"):
        key = f"model.vision_sampler.selector.{name}"
        state[key] = state[key][rows]
    assert equal_outputs(model, built({"scales": ordered, "gate": gate}, {}, state), PROMPTS)

    with torch.no_grad():
        selection = model(**tiny.batch([tiny.TWO]), output_selection=True).selection
    # The maps go on counting the trained scales.
    used = {model.config.vision_sampler["scales"][i] for s in selection for i in s.local_scales.unique() if i >= 0}
    assert used <= set(scales)


def test_both_off_is_llava_next():
    stock = tiny.lively(LlavaNextForConditionalGeneration(tiny.stock_config()))
    ours = tiny.focus_model(**BOTH)
    ours.load_state_dict(stock.state_dict(), strict=False)
    ours.set_samplers(vision=False, text=False)
    for prompt in (tiny.ONE, tiny.TWO, tiny.TEXT):
        inputs = tiny.batch([prompt])
        with torch.no_grad():
            assert torch.equal(stock(**inputs).logits, ours(**inputs).logits)
    with torch.no_grad():
        [selection] = ours(**tiny.batch([tiny.ONE]), output_selection=True).selection
    assert (selection.scales, selection.window, selection.drop_layer) == (["1x1"], 1, None)
    assert selection.num_kept == selection.num_tokens == selection.baseline_tokens


def test_a_text_sampler_that_was_off_in_training():
    model = tiny.focus_model(vision={})
    model.set_samplers(text=True, text_layer=1, gamma=0.5)
    assert equal_outputs(model, built({}, {"layer": 1, "gamma": 0.5}, model.state_dict()), PROMPTS)


@torch.no_grad()
def test_a_cache_keeps_the_layer_of_its_first_pass():
    model, other = tiny.focus_model(**BOTH), tiny.focus_model(**BOTH)
    inputs = tiny.batch([tiny.ONE])
    token = torch.tensor([[70, 71]])
    expected = other(input_ids=token, past_key_values=other(**inputs).past_key_values).logits
    cache = model(**inputs).past_key_values
    model.set_samplers(text_layer=3, gamma=0.2)
    assert torch.equal(model(input_ids=token, past_key_values=cache).logits, expected)
    cache = model(**inputs).past_key_values
    model.set_samplers(text=False)
    model(input_ids=token, past_key_values=cache)
    assert cache.get_seq_length(2) > cache.get_seq_length(3)


def test_saving_keeps_the_trained_settings(tmp_path):
    model = tiny.focus_model(**BOTH)
    before = model.samplers
    model.set_samplers(vision=False, scales=["4x4"], gamma=0.1, text_layer=1, text=False)
    model.save_pretrained(tmp_path)
    again = FocusLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert again.samplers == before
    assert again.samplers.scales == ("1x1", "2x2", "4x4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0}, "gamma is 0; it must be a number above 0"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"gamma": "much"}, "gamma is 'much'"),
        ({"text_layer": 4}, "text_layer is 4; it must be one of the 4 layers"),
        ({"text_layer": 1.0}, "text_layer is 1.0"),
        ({"text_layer": -1, "text": False}, "text_layer is -1"),
        ({"scales": ["1x1", "8x8"]}, "it must be a list of at least one of the trained scales"),
        ({"scales": []}, "at least one of the trained scales"),
        ({"scales": "1x1"}, "must be a list"),
        ({"vision": 1}, "vision is 1; it must be True or False"),
        ({"text": "yes"}, "text is 'yes'; it must be True or False"),
    ],
)
def test_refusals_change_nothing(change, message):
    model = tiny.focus_model(**BOTH)
    before = model.samplers
    with pytest.raises(ValueError, match=message):
        model.set_samplers(**({"gamma": 0.5} | change))
    assert model.samplers == before


def test_what_was_not_trained_cannot_be_set():
    model = tiny.focus_model(text={})
    with pytest.raises(ValueError, match="without a vision-guided sampler: it has no weights"):
        model.set_samplers(vision=True)
    with pytest.raises(ValueError, match="but the model was trained without"):
        model.set_samplers(scales=["1x1"])
    untrained = tiny.focus_model(vision={})
    untrained.config.instruction_start_token_ids = []
    with pytest.raises(ValueError, match="no instruction_start_token_ids"):
        untrained.set_samplers(text=True, text_layer=1)
    with pytest.raises(ValueError, match="text_layer is 8; it must be one of the 4 layers"):
        tiny.focus_model(vision={}).set_samplers(text=True)  # the default, made for 32 layers
