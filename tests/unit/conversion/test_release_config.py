"""The configuration of a folder for transformers' own class."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import LlavaNextConfig

from megatron_focus.conversion.release_config import llava_next_config, llava_next_json
from tests.unit.conversion.hf_folders import LLAMA3_ROPE
from tests.unit.conversion.tiny_facts import tiny_facts


@pytest.mark.parametrize("rope", [LLAMA3_ROPE, {"rope_type": "default", "rope_theta": 1e6}], ids=["scaled", "plain"])
def test_rotary_settings_have_both_names(rope, tmp_path):
    """transformers 4 reads ``rope_theta`` and ``rope_scaling``, later ones ``rope_parameters``."""
    facts = tiny_facts(sampler=False)
    facts = replace(facts, text=replace(facts.text, rope_parameters=rope), text_sampler={"enabled": False})
    path = tmp_path / "config.json"
    path.write_text(llava_next_json(llava_next_config(facts, torch.float32)))
    text = json.loads(path.read_text())["text_config"]
    assert text["rope_theta"] == rope["rope_theta"]
    scaled = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert text["rope_scaling"] == (None if rope["rope_type"] == "default" else scaled)
    assert LlavaNextConfig.from_pretrained(tmp_path).text_config.rope_parameters == rope
