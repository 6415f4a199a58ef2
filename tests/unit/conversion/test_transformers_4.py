"""A folder for transformers' own class says everything under the names of transformers 4 as well.

What is read there is compared in ``tests/unit/release/test_release_bare_environment.py``.
"""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlavaNextConfig

from data_pipeline.conversations.tokenizer import load_tokenizer
from megatron_focus.conversion.release_config import llava_next_config
from megatron_focus.conversion.release_processor import release_processor
from megatron_focus.conversion.transformers_4 import llava_next_json
from tests.unit.conversion.hf_folders import LLAMA3_ROPE
from tests.unit.conversion.tiny_facts import tiny_facts
from tests.unit.conversion.tiny_release import export_llava_next


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


def test_tokenizer_and_processor_files(tmp_path):
    folder, facts = export_llava_next(tmp_path, "mistral")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
    assert tokenizer["extra_special_tokens"] == {"image_token": "<image>"}
    assert tokenizer["padding_side"] == "left"
    assert not {"backend", "is_local", "local_files_only", "model_specific_special_tokens"} & tokenizer.keys()
    alone = json.loads((folder / "preprocessor_config.json").read_text())
    assert alone == json.loads((folder / "processor_config.json").read_text())["image_processor"]

    # transformers 5 reads what it would have written itself.
    own, read = release_processor(tmp_path / "tokenizer", facts), AutoProcessor.from_pretrained(folder)
    assert load_tokenizer(folder).get_vocab() == own.tokenizer.get_vocab()
    assert AutoTokenizer.from_pretrained(folder).padding_side == "left"
    content = [{"type": "image", "image": Image.new("RGB", (90, 40))}, {"type": "text", "text": "a cat <|eot_id|>?"}]
    form = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    expected, given = (p.apply_chat_template([{"role": "user", "content": content}], **form) for p in (own, read))
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[key], value) for key, value in expected.items())
