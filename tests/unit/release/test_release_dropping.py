"""Dropping tokens before a layer, against stock layers that keep every token and mask the dropped keys."""

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.reference.text_guided import text_guided_reference
from tests.unit.release import tiny_models as tiny

LAYER, GAMMA = 2, 0.6


def visual_places(ids: Tensor, model, sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Placeholders that are no newline, and the image of each, for one row without vision sampler."""
    places = (ids == tiny.IMAGE).nonzero()[:, 0]
    image, is_cell = [], []
    for index, grid in enumerate(model.model.image_grids(torch.tensor(sizes))):
        top, bottom, left, right = grid.crop
        flags = [True] * tiny.CELLS**2 + ([True] * (right - left) + [False]) * (bottom - top)
        is_cell += flags
        image += [index] * len(flags)
    is_cell = torch.tensor(is_cell)
    return places[is_cell], torch.tensor(image)[is_cell]


def instruction_places(text: str, ids: Tensor) -> Tensor:
    """Places of the text after the last image up to the end of its turn, one token a byte."""
    last_image = int((ids == tiny.IMAGE).nonzero()[-1])
    length = len(text.split("<image>")[-1].split("<|eot_id|>")[0])
    return torch.arange(last_image + 1, last_image + 1 + length)


def masked_oracle(
    model, embeddings: Tensor, query: Tensor, key: Tensor, image: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of all L tokens with the dropped keys masked from ``LAYER`` on; the tokens kept; the scores of ``key``."""
    decoder, length = model.model.language_model, embeddings.shape[1]
    rotary = decoder.rotary_emb(embeddings, torch.arange(length)[None])
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    hidden, kept, scores = embeddings, torch.ones(length, dtype=torch.bool), None
    for index, layer in enumerate(decoder.layers):
        if index == LAYER:
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            q = attention.q_proj(normed).view(1, length, -1, 16).transpose(1, 2)
            k = attention.k_proj(normed).view(1, length, -1, 16).transpose(1, 2)
            q, k = (states[0].transpose(0, 1) for states in apply_rotary_pos_emb(q, k, *rotary))
            chosen = text_guided_reference(q[query], k[key], image, GAMMA)
            scores = chosen["scores"]
            kept[key] = False
            kept[key[chosen["keep"]]] = True
            visible = visible & kept
            visible.fill_diagonal_(True)  # rows of dropped tokens are not read, but must not be empty
        hidden = layer(hidden, attention_mask=visible[None, None], position_embeddings=rotary)
    return model.lm_head(decoder.norm(hidden)), kept, scores


def embedded(model, inputs: dict[str, Tensor]) -> Tensor:
    """[1, L, C], the embeddings of one row, cells at its placeholders."""
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    embeddings[0, inputs["input_ids"][0] == tiny.IMAGE] = torch.cat(features)
    return embeddings


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("prompt", [tiny.ONE, tiny.TWO], ids=["one image", "two images"])
@torch.no_grad()
def test_dropped_equals_masked(prompt, family):
    model = tiny.focus_model(family, text={"layer": LAYER, "gamma": GAMMA})
    text, sizes = prompt
    inputs = tiny.batch([prompt])
    ids = inputs["input_ids"][0]
    key, image = visual_places(ids, model, sizes)
    query = instruction_places(text, ids)
    assert tiny.TOKENIZER.decode(ids[query]) == text.split("<image>")[-1].split("<|eot_id|>")[0]

    logits, kept, scores = masked_oracle(model, embedded(model, inputs), query, key, image)
    assert 0 < int((~kept).sum()) < len(key)

    output = model(**inputs, output_selection=True)
    assert output.input_positions[0].tolist() == kept.nonzero()[:, 0].tolist()
    # Shorter sums in another order: measured 2.9e-6 at most, logits are up to 7.
    torch.testing.assert_close(output.logits[0], logits[0, kept], atol=3e-5, rtol=0)

    importance = torch.cat([s.importance for s in output.selection])
    newline = torch.cat([s.is_newline for s in output.selection])
    assert torch.equal(importance.isnan(), newline)
    # float32 against float64 on float32 queries and keys: measured 3.5e-8 at most, scores are up to 0.6.
    torch.testing.assert_close(importance[~newline].double(), scores, atol=3e-7, rtol=0)
    assert torch.equal(torch.cat([s.kept for s in output.selection])[~newline], kept[key])


@torch.no_grad()
def test_dropped_equals_masked_in_a_ragged_batch():
    """Every row of a batch padded on the left, against its own masked pass."""
    model = tiny.focus_model(text={"layer": LAYER, "gamma": GAMMA})
    prompts = [tiny.ONE, tiny.TWO]
    output = model(**tiny.batch(prompts))
    for row, prompt in enumerate(prompts):
        text, sizes = prompt
        inputs = tiny.batch([prompt])
        ids = inputs["input_ids"][0]
        key, image = visual_places(ids, model, sizes)
        logits, kept, _ = masked_oracle(model, embedded(model, inputs), instruction_places(text, ids), key, image)
        mine = output.input_positions[row] >= 0
        assert int(mine.sum()) == int(kept.sum()) < len(ids)
        # As above.
        torch.testing.assert_close(output.logits[row, mine], logits[0, kept], atol=3e-5, rtol=0)


@torch.no_grad()
def test_a_later_turn_sees_what_the_first_kept():
    """A cached conversation equals the whole one with the first turn's dropped keys masked."""
    model = tiny.focus_model(text={"layer": LAYER, "gamma": GAMMA})
    text, sizes = tiny.ONE
    inputs = tiny.batch([tiny.ONE])
    first = len(inputs["input_ids"][0])
    turn = torch.tensor([tiny.prompt_ids("a cat<|eot_id|>" + tiny.user("and its colour?") + tiny.ANSWER, [])])
    cache = model(**inputs, use_cache=True).past_key_values
    logits = model(input_ids=turn, past_key_values=cache).logits

    whole = inputs | {"input_ids": torch.cat([inputs["input_ids"], turn], dim=1)}
    key, image = visual_places(inputs["input_ids"][0], model, sizes)
    query = instruction_places(text, inputs["input_ids"][0])
    expected, kept, _ = masked_oracle(model, embedded(model, whole), query, key, image)
    assert not bool(kept.all())
    # As above.
    torch.testing.assert_close(logits[0], expected[0, first:], atol=3e-5, rtol=0)


@torch.no_grad()
def test_nothing_is_dropped_without_instruction_image_or_with_gamma_one():
    cases = [
        (tiny.TEXT, GAMMA),
        (tiny.ONE, 1.0),
        ((tiny.assistant("<image>\nno user speaks"), [(97, 61)]), GAMMA),
        ((tiny.user("<image>") + tiny.ANSWER, [(97, 61)]), GAMMA),
    ]
    for prompt, gamma in cases:
        plain, dropping = tiny.focus_model(), tiny.focus_model(text={"layer": LAYER, "gamma": gamma})
        inputs = tiny.batch([prompt])
        assert torch.equal(plain(**inputs).logits, dropping(**inputs).logits)


@pytest.mark.parametrize("layer", [0, 3])
@torch.no_grad()
def test_first_and_last_layer_can_drop(layer):
    model = tiny.focus_model(text={"layer": layer, "gamma": 0.3})
    inputs = tiny.batch([tiny.ONE])
    output = model(**inputs, output_hidden_states=True)
    lengths = [states.shape[1] for states in output.hidden_states]
    assert lengths[:layer] == [inputs["input_ids"].shape[1]] * layer
    assert set(lengths[layer:]) == {output.logits.shape[1]}
    assert lengths[-1] < inputs["input_ids"].shape[1]
