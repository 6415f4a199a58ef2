"""What ``forward`` takes and returns with both samplers on."""

import pytest
import torch
from transformers import DynamicCache

from megatron_focus.release.modeling_focus_llava import FocusLlavaForConditionalGeneration
from tests.unit.release import tiny_models as tiny

PROMPTS = [tiny.ONE, tiny.TWO, tiny.TURNS, tiny.TEXT]


@pytest.fixture(scope="module")
def model():
    return tiny.focus_model(vision={}, text={})


@pytest.mark.parametrize("padding_side", ["left", "right"])
@torch.no_grad()
def test_batch_equals_single(model, padding_side):
    inputs = tiny.batch(PROMPTS, padding_side=padding_side)
    output = model(**inputs)
    padding = (inputs["attention_mask"] == 0).sum(1) if padding_side == "left" else torch.zeros(len(PROMPTS), dtype=int)
    for row, prompt in enumerate(PROMPTS):
        alone = model(**tiny.batch([prompt]))
        kept = alone.logits.shape[1]
        assert (output.input_positions[row, :-kept] == -1).all()
        assert torch.equal(output.input_positions[row, -kept:] - padding[row], alone.input_positions[0])
        # Other matrix sizes, other order of sums: measured 5.8e-6 at most, logits are up to 7.
        torch.testing.assert_close(output.logits[row, -kept:], alone.logits[0], atol=3e-5, rtol=0)


@torch.no_grad()
def test_logits_to_keep(model):
    inputs = tiny.batch(PROMPTS)
    full = model(**inputs)
    for keep in (1, 5, torch.tensor([3, 0, 7])):
        part = model(**inputs, logits_to_keep=keep)
        index = slice(-keep, None) if isinstance(keep, int) else keep
        assert torch.equal(part.input_positions, full.input_positions[:, index])
        # One row through the output layer or all: measured 0 here, but kernels may differ with the size.
        torch.testing.assert_close(part.logits, full.logits[:, index], atol=1e-5, rtol=0)


def test_labels_in_the_input_places_give_the_loss_of_the_kept_tokens(model):
    inputs = tiny.batch([tiny.ONE, tiny.TURNS])
    ids = inputs["input_ids"]
    labels = ids.masked_fill((ids == tiny.IMAGE) | (inputs["attention_mask"] == 0), -100)
    output = model(**inputs, labels=labels)
    losses = []
    for row in range(2):
        places = output.input_positions[row]
        for here, after in zip(range(len(places) - 1), range(1, len(places)), strict=True):
            if places[here] >= 0 and labels[row, places[after]] >= 0:
                losses.append(-output.logits[row, here].log_softmax(-1)[labels[row, places[after]]])
    # Mean in another order: measured 0.
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), atol=5e-6, rtol=0)
    # All but each row's first token are predicted.
    assert len(losses) == int((labels >= 0).sum()) - 2

    labels[0, (ids[0] == tiny.IMAGE).nonzero()[0]] = 5
    with pytest.raises(ValueError, match="1 labels stand at image placeholders"):
        model(**inputs, labels=labels)


def test_training_reaches_every_parameter():
    model = tiny.focus_model(vision={}, text={}).train()
    inputs = tiny.batch([tiny.ONE, tiny.TWO])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == tiny.IMAGE, -100)
    labels[inputs["attention_mask"] == 0] = -100
    output = model(**inputs, labels=labels)
    assert output.past_key_values is None
    output.loss.backward()
    untouched = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    unread = {n for n in untouched if "vision_tower.encoder.layers.2." in n or "vision_tower.post_layernorm" in n}
    # A key's bias changes no softmax, so its gradient is zero but for rounding.
    assert unread
    assert all(name.endswith("k_proj.bias") for name in untouched - unread)


@pytest.mark.parametrize("prompts", [[tiny.TWO], PROMPTS], ids=["single", "ragged batch"])
@torch.no_grad()
def test_eager_equals_sdpa(prompts):
    model = tiny.focus_model(vision={}, text={})
    inputs, outputs = tiny.batch(prompts), []
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        outputs.append(model(**inputs))
    assert torch.equal(outputs[0].input_positions, outputs[1].input_positions)
    valid = outputs[0].input_positions >= 0
    # Sums in another order: measured 1.5e-5 at most, logits are up to 7.
    torch.testing.assert_close(outputs[0].logits[valid], outputs[1].logits[valid], atol=1e-4, rtol=0)


@torch.no_grad()
def test_selection(model):
    inputs = tiny.batch([tiny.ONE, tiny.TWO, tiny.TEXT])
    assert model(**inputs).selection is None
    output = model(**inputs, output_selection=True)
    grids = model.model.image_grids(inputs["image_sizes"])
    assert len(output.selection) == 3
    used = set()
    for grid, image in zip(grids, output.selection, strict=True):
        assert image.scales == ["1x1", "2x2", "4x4"]
        assert image.window == 4
        assert image.crop == grid.crop
        assert image.global_scales.shape == (1, 1)
        assert image.local_scales.shape == (grid.tile_rows, grid.tile_columns)
        assert len(image.kept) == len(image.is_newline) == len(image.importance) == len(image.footprint)
        assert bool(image.kept[image.is_newline].all())
        assert bool(image.kept[~image.is_newline].any())
        used |= set(image.local_scales.flatten().tolist())
    assert len(used - {-1}) > 1
    kept = sum(int(image.kept.sum()) for image in output.selection)
    visual = (inputs["input_ids"] == tiny.IMAGE).gather(1, output.input_positions.clamp(min=0))
    assert kept == int((visual & (output.input_positions >= 0)).sum())

    without_text = tiny.focus_model(vision={"global_view": "drop"})(**inputs, output_selection=True).selection
    assert all(i.importance is None and i.global_scales is None and bool(i.kept.all()) for i in without_text)


@torch.no_grad()
def test_a_picture_without_a_token_is_refused():
    model = tiny.focus_model(vision={"global_view": "drop"})
    inputs = tiny.batch([(tiny.user("<image>\nwhat?"), [(60, 60)]), (tiny.user("<image>\nand this?"), [(3, 400)])])
    with pytest.raises(ValueError, match=r"image 1 has no visual token under vision_sampler\.global_view='drop'"):
        model(**inputs)
    model.set_samplers(vision=False)
    assert model(**inputs).logits.isfinite().all()


@torch.no_grad()
def test_saved_equals_reloaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = FocusLlavaForConditionalGeneration.from_pretrained(tmp_path)
    inputs = tiny.batch(PROMPTS)
    assert torch.equal(model(**inputs).logits, again(**inputs).logits)
    single = tiny.batch([tiny.TWO])
    form = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**single, **form), again.generate(**single, **form))


@torch.no_grad()
def test_text_embeddings_instead_of_ids(model):
    inputs = tiny.batch([tiny.TEXT])
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(**inputs).logits)


def test_refusals_name_what_is_wrong(model):
    inputs = tiny.batch([tiny.ONE])
    ids = inputs["input_ids"]
    refusals = [
        ({"position_ids": torch.zeros_like(ids)}, "position_ids"),
        ({"output_attentions": True}, "output_attentions"),
        ({"past_key_values": DynamicCache()}, "needs a FocusCache"),
        ({"input_ids": ids[:, :-60]}, "row 0 has 40 image placeholders, but its images \\[0\\] need 72"),
        ({"input_ids": ids.masked_fill(ids == tiny.IMAGE, 5)}, "images \\[0\\] have no placeholders"),
        ({"image_sizes": None}, "need input_ids and image_sizes"),
        ({"pixel_values": None}, "input_ids have image placeholders, but there are no pixel_values"),
        ({"pixel_values": inputs["pixel_values"][:, :1]}, "pixel_values has shape"),
        ({"labels": ids, "logits_to_keep": 1}, "labels need the logits of all tokens"),
        ({"inputs_embeds": torch.zeros(1, 3, 64)}, "either input_ids or inputs_embeds"),
    ]
    for change, message in refusals:
        with pytest.raises(ValueError, match=message):
            model(**inputs | change)
