"""The parameter table in both directions, and against the names and shapes of transformers' own models."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from megatron_focus.conversion.parameter_table import hf_to_megatron, megatron_to_hf, parameter_table
from megatron_focus.conversion.tensor_layouts import to_megatron
from megatron_focus.release.modeling_focus_llava import FocusLlavaForConditionalGeneration
from tests.unit.conversion.tiny_facts import random_state, tiny_facts
from tests.unit.release import tiny_models as tiny

VARIANTS = [
    {"family": "llama", "groups": 2},
    {"family": "llama", "groups": 4, "tied": True},
    {"family": "llama", "groups": 1, "sampler": False},
    {"family": "qwen2", "groups": 2, "tied": True},
    {"family": "qwen2", "groups": 4},
    {"family": "mistral", "groups": 2},
]


@pytest.fixture(params=VARIANTS, ids=str)
def facts(request):
    return tiny_facts(**request.param)


def hf_model(facts) -> FocusLlavaForConditionalGeneration:
    text = facts.text
    return tiny.focus_model(
        text.family,
        vision={} if facts.vision_sampler["enabled"] else None,
        text={},
        tied=text.tie_embeddings,
        key_heads=text.num_query_groups,
    )


def test_megatron_round_trip_is_exact(facts):
    state = random_state(facts)
    again = hf_to_megatron(megatron_to_hf(state, facts), facts)
    assert state.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())


def test_hf_round_trip_is_exact(facts):
    """From a model of transformers; only what LLaVA never reads is lost."""
    state = hf_model(facts).state_dict()
    again = megatron_to_hf(hf_to_megatron(state, facts), facts)
    assert set(state) - set(again) == ({"lm_head.weight"} if facts.text.tie_embeddings else set())
    for name, tensor in again.items():
        unread = "vision_tower.encoder.layers.2." in name or "post_layernorm" in name
        assert tensor.shape == state[name].shape
        assert unread or torch.equal(tensor, state[name]), name


def test_unread_layer_changes_nothing():
    facts = tiny_facts(sampler=False)
    model = hf_model(facts)
    inputs = tiny.batch([tiny.ONE])
    with torch.no_grad():
        before = model(**inputs).logits
        model.load_state_dict(megatron_to_hf(hf_to_megatron(model.state_dict(), facts), facts))
        assert torch.equal(model(**inputs).logits, before)


def test_qkv_is_grouped_as_megatron_reads_it():
    """Per query group its query heads, then its key head, then its value head."""
    facts = tiny_facts(groups=2)  # 4 query heads of 16
    table = {entry.megatron: entry for entry in parameter_table(facts)}
    entry = table["decoder.layers.0.self_attention.linear_qkv.weight"]
    q, k, v = torch.arange(64), 100 + torch.arange(32), 200 + torch.arange(32)
    joint = to_megatron(entry.layout, entry.shape, [rows[:, None].expand(-1, 64) for rows in (q, k, v)])[:, 0]
    expected = [q[:32], k[:16], v[:16], q[32:], k[16:], v[16:]]
    assert torch.equal(joint, torch.cat(expected))


def test_gate_stands_above_up():
    facts = tiny_facts()
    state = random_state(facts)
    gate = megatron_to_hf(state, facts)["model.language_model.layers.1.mlp.gate_proj.weight"]
    assert torch.equal(gate, state["decoder.layers.1.mlp.linear_fc1.weight"][:96])


def test_every_problem_is_listed():
    facts = tiny_facts()
    state = random_state(facts)
    del state["image_newline"]
    state["decoder.layers.9.mlp.linear_fc2.weight"] = torch.zeros(1)
    state["decoder.final_layernorm.weight"] = torch.zeros(63)
    with pytest.raises(ValueError) as error:
        megatron_to_hf(state, facts)
    for line in (
        "missing image_newline",
        "left over decoder.layers.9.mlp.linear_fc2.weight",
        "decoder.final_layernorm.weight has shape (63,), expected (64,)",
    ):
        assert line in str(error.value)

    hf = megatron_to_hf(random_state(facts), facts)
    del hf["lm_head.weight"]
    hf["model.language_model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    with pytest.raises(ValueError) as error:
        hf_to_megatron(hf, facts)
    assert "missing lm_head.weight" in str(error.value)
    assert "left over model.language_model.layers.0.self_attn.q_proj.bias" in str(error.value)


def test_vision_layer_computes_the_same_from_the_joint_projection():
    """One CLIP attention written out with Megatron's joint weight equals transformers'."""
    config = CLIPVisionConfig(**tiny.vision_config().to_dict())
    tower = tiny.lively(CLIPVisionModel(config))
    facts = tiny_facts(sampler=False)
    hf = hf_model(facts).state_dict() | {f"model.vision_tower.{k}": v for k, v in tower.state_dict().items()}
    state = hf_to_megatron(hf, facts)
    prefix = "vision_tower.decoder.layers.0.self_attention"
    x = torch.randn(1, 17, 32, generator=torch.Generator().manual_seed(0))
    joint = torch.nn.functional.linear(x, state[f"{prefix}.linear_qkv.weight"], state[f"{prefix}.linear_qkv.bias"])
    q, k, v = joint.view(1, 17, 2, 3, 16).permute(3, 0, 2, 1, 4)  # mcore: [tokens, groups, (q, k, v), d]
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    ours = torch.nn.functional.linear(mixed, state[f"{prefix}.linear_proj.weight"], state[f"{prefix}.linear_proj.bias"])
    theirs, _ = tower.encoder.layers[0].self_attn(x)
    # One product for three: measured 0 here, outputs are up to 5.4.
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)
