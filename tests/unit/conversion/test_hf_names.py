"""The names in a folder for transformers' own class, letter by letter as ``llava-hf`` publishes them."""

import pytest
from transformers import LlavaNextForConditionalGeneration

from megatron_focus.conversion.hf_names import llava_next_name
from megatron_focus.conversion.parameter_table import parameter_table, unused_vision_tensors
from tests.unit.conversion.tiny_facts import tiny_facts
from tests.unit.release.tiny_models import stock_config

PUBLISHED = [
    "image_newline",
    "language_model.lm_head.weight",
    "language_model.model.embed_tokens.weight",
    "language_model.model.layers.0.input_layernorm.weight",
    "language_model.model.layers.0.mlp.down_proj.weight",
    "language_model.model.layers.0.self_attn.q_proj.weight",
    "language_model.model.norm.weight",
    "multi_modal_projector.linear_1.bias",
    "multi_modal_projector.linear_1.weight",
    "multi_modal_projector.linear_2.bias",
    "multi_modal_projector.linear_2.weight",
    "vision_tower.vision_model.embeddings.class_embedding",
    "vision_tower.vision_model.embeddings.patch_embedding.weight",
    "vision_tower.vision_model.embeddings.position_embedding.weight",
    "vision_tower.vision_model.encoder.layers.0.layer_norm1.bias",
    "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
    "vision_tower.vision_model.encoder.layers.0.self_attn.out_proj.bias",
    "vision_tower.vision_model.post_layernorm.weight",
    "vision_tower.vision_model.pre_layrnorm.weight",
]


def test_llava_next_has_the_published_names():
    facts = tiny_facts(sampler=False)
    table = [name for entry in parameter_table(facts) for name in entry.hf]
    table += unused_vision_tensors(facts.vision)
    written = {llava_next_name(name) for name in table}
    assert set(PUBLISHED) <= written
    assert {name.partition(".")[0] for name in written} == {name.partition(".")[0] for name in PUBLISHED}
    # One for each of the model's own, so that nothing is left without a name or given one twice.
    assert len(written) == len(table) == len(LlavaNextForConditionalGeneration(stock_config()).state_dict())


def test_what_llava_next_does_not_have():
    with pytest.raises(ValueError, match=r"no tensor model\.vision_sampler"):
        llava_next_name("model.vision_sampler.selector.weight")
