"""With both samplers off the release is transformers' LLaVA-NeXT."""

import pytest
import torch
from transformers import LlavaNextForConditionalGeneration

from tests.unit.release import tiny_models as tiny

ODD_SIZES = [(57, 56), (13, 200), (200, 13), (111, 113), (97, 61), (33, 120), (3, 400), (400, 3), (56, 168)]

TWO_TURNS = (tiny.user("hello") + tiny.assistant("hello, you") + tiny.user("how are you?") + tiny.ANSWER, [])


def pair(family: str = "llama", **kwargs) -> tuple:
    stock = tiny.lively(LlavaNextForConditionalGeneration(tiny.stock_config(family, **kwargs)))
    ours = tiny.focus_model(family, **kwargs)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@torch.no_grad()
def test_logits_of_odd_image_sizes(family):
    stock, ours = pair(family)
    for size in ODD_SIZES:
        inputs = tiny.batch([(tiny.ONE[0], [size])])
        # The same operations on the same numbers: equal bit for bit.
        assert torch.equal(stock(**inputs).logits, ours(**inputs).logits)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_logits_of_a_left_padded_batch(attention):
    stock, ours = pair()
    stock.set_attn_implementation(attention)
    ours.set_attn_implementation(attention)
    inputs = tiny.batch([tiny.ONE, tiny.TWO, tiny.TURNS, tiny.TEXT])
    mask = inputs["attention_mask"].bool()
    position_ids = (mask.long().cumsum(1) - 1).clamp(min=0)
    output = ours(**inputs)
    assert torch.equal(stock(**inputs, position_ids=position_ids).logits[mask], output.logits[mask])
    assert torch.equal(output.input_positions, torch.arange(mask.shape[1]).expand(mask.shape).masked_fill(~mask, -1))


@pytest.mark.parametrize("prompts", [[tiny.TWO], [tiny.ONE, tiny.TWO, tiny.TEXT]], ids=["single", "ragged batch"])
@torch.no_grad()
def test_generation(prompts):
    stock, ours = pair()
    inputs = tiny.batch(prompts)
    greedy, sampled = {"do_sample": False}, {"do_sample": True, "top_k": 20}
    for mode in (greedy, greedy | {"use_cache": False}, sampled):
        torch.manual_seed(3)
        expected = stock.generate(**inputs, max_new_tokens=6, **mode)
        torch.manual_seed(3)
        assert torch.equal(expected, ours.generate(**inputs, max_new_tokens=6, **mode))


@pytest.mark.parametrize("samplers", [{}, {"vision": {}, "text": {}}], ids=["samplers off", "samplers on"])
@pytest.mark.parametrize("prompts", [[tiny.TEXT], [tiny.TEXT, TWO_TURNS]], ids=["single", "ragged batch"])
@torch.no_grad()
def test_text_alone(prompts, samplers):
    """Without an image there is nothing to sample, whatever the samplers are set to."""
    stock = tiny.lively(LlavaNextForConditionalGeneration(tiny.stock_config()))
    ours = tiny.focus_model(**samplers)
    ours.load_state_dict(stock.state_dict(), strict=False)
    inputs = tiny.batch(prompts)
    mask = inputs["attention_mask"].bool()
    position_ids = (mask.long().cumsum(1) - 1).clamp(min=0)
    assert torch.equal(stock(**inputs, position_ids=position_ids).logits[mask], ours(**inputs).logits[mask])
    form = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [tiny.IMAGE]}
    assert torch.equal(stock.generate(**inputs, **form), ours.generate(**inputs, **form))


@torch.no_grad()
def test_beam_search():
    stock, ours = pair()
    single = tiny.batch([tiny.ONE, tiny.TURNS])  # one image a row: stock beam search pairs several with wrong rows
    expected = stock.generate(**single, max_new_tokens=6, num_beams=3, do_sample=False)
    assert torch.equal(expected, ours.generate(**single, max_new_tokens=6, num_beams=3, do_sample=False))


@torch.no_grad()
def test_image_features():
    stock, ours = pair()
    inputs = tiny.batch([tiny.TWO])
    images = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    theirs = stock.get_image_features(**images).pooler_output
    for expected, got in zip(theirs, ours.get_image_features(**images).pooler_output, strict=True):
        assert torch.equal(expected, got)


def test_loss():
    stock, ours = pair(tied=True)
    inputs = tiny.batch([tiny.ONE, tiny.TURNS], padding_side="right")
    labels = inputs["input_ids"].masked_fill(
        (inputs["input_ids"] == tiny.IMAGE) | (inputs["attention_mask"] == 0), -100
    )
    expected, got = stock(**inputs, labels=labels).loss, ours(**inputs, labels=labels).loss
    # Ours pads on the left, so sums run in another order: measured 4.8e-7.
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)


def test_parameter_names():
    stock, ours = pair()
    sampled = tiny.focus_model(vision={}, text={})
    assert list(stock.state_dict()) == list(ours.state_dict())
    extra = set(sampled.state_dict()) - set(stock.state_dict())
    assert extra == {"model.vision_sampler.selector.weight", "model.vision_sampler.selector.bias"}
