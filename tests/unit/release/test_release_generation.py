"""``generate`` with both samplers on."""

import pytest
import torch
from transformers import DynamicCache, GenerationMixin, StaticCache

from tests.unit.release import tiny_models as tiny

PROMPTS = [tiny.ONE, tiny.TWO, tiny.TURNS, tiny.TEXT]


@pytest.fixture(scope="module")
def model():
    return tiny.focus_model(vision={}, text={})


# A random model may say the placeholder; the release's generation_config.json forbids it the same way.
NO_IMAGE = {"suppress_tokens": [tiny.IMAGE]}
MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "num_return_sequences": 2, "top_k": 20},
    "beam search": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}


@pytest.mark.parametrize("prompts", [[tiny.TWO], PROMPTS], ids=["single", "ragged batch"])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_cache_equals_recomputation(model, mode, prompts):
    inputs = tiny.batch(prompts)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        outputs.append(model.generate(**inputs, max_new_tokens=6, use_cache=use_cache, **MODES[mode], **NO_IMAGE))
    assert torch.equal(*outputs)
    prompt = inputs["input_ids"].repeat_interleave(len(outputs[0]) // len(prompts), dim=0)
    assert torch.equal(outputs[0][:, : prompt.shape[1]], prompt)


@pytest.mark.parametrize("mode", ["greedy", "beam search"])
@torch.no_grad()
def test_batch_equals_single(model, mode):
    together = model.generate(**tiny.batch(PROMPTS), max_new_tokens=6, **MODES[mode])[:, -6:]
    alone = [model.generate(**tiny.batch([p]), max_new_tokens=6, **MODES[mode])[:, -6:] for p in PROMPTS]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("prompts", [[tiny.TWO], PROMPTS], ids=["single", "ragged batch"])
@torch.no_grad()
def test_logits_step_by_step(model, prompts):
    """Each cached step gives the logits of a pass over everything."""
    inputs = tiny.batch(prompts)
    output = model(**inputs, use_cache=True)
    cache, logits = output.past_key_values, output.logits
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for step in range(4):
        token = torch.full((len(prompts), 1), 60 + step)
        ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
        output = model(input_ids=token, attention_mask=mask, past_key_values=cache)
        logits, cache = output.logits[:, -1], output.past_key_values
        whole = model(**inputs | {"input_ids": ids, "attention_mask": mask}, use_cache=False)
        # Sums in another order: measured 3.7e-6 at most, logits are up to 6.
        torch.testing.assert_close(logits, whole.logits[:, -1], atol=3e-5, rtol=0)
        assert output.input_positions.tolist() == [[ids.shape[1] - 1]] * len(prompts)


@torch.no_grad()
def test_layers_hold_what_they_need(model):
    inputs = tiny.batch([tiny.ONE])
    output = model(**inputs, use_cache=True, output_hidden_states=True)
    cache = output.past_key_values
    held = [cache.get_seq_length(layer) for layer in range(4)]
    assert held == [states.shape[1] for states in output.hidden_states[:4]]
    assert held[0] == held[1] > held[2] == held[3]
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] > held[0]


@pytest.mark.parametrize("text", [None, {}], ids=["text sampler off", "text sampler on"])
@torch.no_grad()
def test_next_turn_continues_the_cache(text):
    model = tiny.focus_model(vision={}, text=text)
    inputs = tiny.batch([tiny.ONE])
    first = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    turn = torch.tensor([tiny.prompt_ids(tiny.user("and its colour?") + tiny.ANSWER, [])])
    ids = torch.cat([first.sequences, turn], dim=1)
    # As the processor gives the longer conversation: all ids, all of the mask, the images once more.
    longer = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    second = model.generate(**longer, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False)

    if text is None:  # nothing depends on the instruction, so a fresh start says the same
        assert torch.equal(second, model.generate(**longer, max_new_tokens=4, do_sample=False))
    # Fed token by token, the cache leads to the same answer.
    cache = model(**inputs, use_cache=True).past_key_values
    for token in ids[0, inputs["input_ids"].shape[1] :]:
        logits = model(input_ids=token.view(1, 1), past_key_values=cache).logits
    for token in second[0, ids.shape[1] :]:
        assert int(logits[0, -1].argmax()) == token
        logits = model(input_ids=token.view(1, 1), past_key_values=cache).logits


@pytest.mark.parametrize("prompts", [[tiny.ONE], PROMPTS], ids=["single", "ragged batch"])
@pytest.mark.parametrize("text", [None, {"gamma": 1.0}], ids=["text sampler off", "gamma of one"])
@torch.no_grad()
def test_continuing_equals_a_fresh_prompt(text, prompts):
    """Where the first turn drops nothing, a longer conversation is the same with the earlier cache and without."""
    model = tiny.focus_model(vision={}, text=text)
    inputs = tiny.batch(prompts)
    first = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, **NO_IMAGE)
    turn = torch.tensor([tiny.prompt_ids(tiny.user("and its colour?") + tiny.ANSWER, [])] * len(prompts))
    ids = torch.cat([first.sequences, turn], dim=1)
    added = ids.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, added), value=1)
    longer = inputs | {"input_ids": ids, "attention_mask": mask}
    form = {"max_new_tokens": 4, "do_sample": False, **NO_IMAGE}
    again = model.generate(**longer, past_key_values=first.past_key_values, **form)
    assert torch.equal(again, model.generate(**longer, **form))


@torch.no_grad()
def test_images_of_a_later_turn_are_refused(model):
    inputs = tiny.batch([tiny.ONE])
    cache = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="only be given with the first tokens"):
        model(**inputs, past_key_values=cache)


def test_other_caches_and_assisted_generation_are_refused(model):
    inputs = tiny.batch([tiny.ONE])
    static = StaticCache(config=model.config.text_config, max_cache_len=400)
    refusals = [
        ({"cache_implementation": "static"}, "cache_implementation 'static' is not supported"),
        ({"past_key_values": static}, "StaticCache; this model needs a FocusCache"),
        ({"past_key_values": DynamicCache()}, "DynamicCache; this model needs a FocusCache"),
        ({"cache_implementation": "quantized"}, "cache_implementation 'quantized' is not supported"),
        ({"cache_implementation": "offloaded"}, "cache_implementation 'offloaded' is not supported"),
        ({"prompt_lookup_num_tokens": 2}, "assisted generation is not supported"),
        ({"assistant_model": model}, "assisted generation is not supported"),
    ]
    for arguments, message in refusals:
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs, max_new_tokens=3, **arguments)


def test_continuous_batching_is_refused(model):
    ids = tiny.batch([tiny.TEXT])["input_ids"].tolist()
    with pytest.raises(ValueError, match="continuous batching"):
        model.generate_batch(ids)


def test_cache_follows_rows_and_forgets(model):
    cache = model(**tiny.batch([tiny.ONE, tiny.TURNS]), use_cache=True).past_key_values
    before = cache.next_position.clone()
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.next_position, before.repeat_interleave(2))
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert torch.equal(cache.next_position, before.flip(0))
    assert cache.all_mask.shape[0] == cache.kept_mask.shape[0] == 2
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.all_mask is None


def test_generation_methods_still_exist_in_transformers():
    """The overridden methods are private to transformers: a version that renames them would silently skip ours."""
    assert hasattr(GenerationMixin, "_prepare_cache_for_generation")
    assert hasattr(GenerationMixin, "_expand_inputs_for_generation")
    assert hasattr(GenerationMixin, "init_continuous_batching")
