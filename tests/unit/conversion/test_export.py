"""A written release, loaded as a user loads it: in another process, without this repository and without Megatron."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

from data_pipeline.conversations.chat_templates import CHAT_TEMPLATES
from megatron_focus.conversion.export import write_release
from megatron_focus.conversion.parameter_table import megatron_to_hf
from megatron_focus.release.configuration_focus_llava import FocusLlavaConfig
from megatron_focus.release.modeling_focus_llava import FocusLlavaForConditionalGeneration
from tests.unit.conversion.tiny_facts import InMemory, random_state, tiny_facts
from tests.unit.conversion.tiny_release import facts_for, lively_state, write_tokenizer
from tests.unit.release import tiny_models as tiny

USER_SCRIPT = r"""
import json, sys
from pathlib import Path
# Importing either is an error from here on.
sys.modules["megatron"] = sys.modules["megatron_focus"] = sys.modules["data_pipeline"] = None
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder)
image = Image.open(out / "image.png")

def conversation(text, images=1):
    content = [{"type": "image", "image": image}] * images + [{"type": "text", "text": text}]
    return [{"role": "user", "content": content}]

chats = [conversation("what is it?"), conversation("and the two of them?", 2), conversation("hello", 0)]
inputs = processor.apply_chat_template(
    chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
)
with torch.no_grad():
    logits = model(**inputs, logits_to_keep=1).logits
    selection = model(**inputs, output_selection=True).selection
answer = model.generate(**inputs, max_new_tokens=4)
pipe = pipeline("image-text-to-text", model=model, processor=processor)
said = pipe(text=conversation("what is it?"), max_new_tokens=4, return_full_text=False)
folder_pipe = pipeline("image-text-to-text", model=str(folder), trust_remote_code=True)
again = folder_pipe(text=conversation("what is it?"), max_new_tokens=4, return_full_text=False)
model.save_pretrained(out / "resaved")
example = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
example = example.replace("path/to/this/folder", str(folder)).replace("image.jpg", str(out / "image.png"))
exec(compile(example, "README.md", "exec"), {})
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
torch.save(dict(inputs) | {"logits": logits, "answer": answer}, out / "results.pt")
facts = {
    "base": type(base).__name__,
    "config": type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__,
    "said": said[0]["generated_text"],
    "again": again[0]["generated_text"],
    "decoded": processor.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True),
    "images": len(selection),
    "resaved": sorted(path.name for path in (out / "resaved").iterdir()),
    "repository": [path for path in sys.path if (Path(path) / "megatron_focus").exists()],
}
(out / "facts.json").write_text(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def facts(tokenizer_folder):
    return facts_for(tokenizer_folder)


@pytest.fixture(scope="module")
def state(facts):
    return lively_state(facts)


@pytest.fixture(scope="module")
def release(facts, state, tokenizer_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "release"
    write_release(InMemory(state), facts, tokenizer_folder, folder, dtype=torch.float32)
    return folder


def test_a_user_can_load_and_run_it(release, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    script = tmp_path / "user.py"
    script.write_text(USER_SCRIPT)
    command = [sys.executable, str(script), str(release), str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]

    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["repository"] == []
    assert (facts["base"], facts["config"]) == ("FocusLlavaModel", "FocusLlavaConfig")
    assert facts["images"] == 3
    assert facts["said"] == facts["again"] == facts["decoded"]
    assert {"modeling_focus_llava.py", "vision_sampling.py", "config.json"} <= set(facts["resaved"])

    results = torch.load(tmp_path / "results.pt", weights_only=True)
    inputs = {k: results[k] for k in ("input_ids", "attention_mask", "pixel_values", "image_sizes")}
    here = FocusLlavaForConditionalGeneration.from_pretrained(release)
    with torch.no_grad():
        # The same code on the same weights.
        assert torch.equal(here(**inputs, logits_to_keep=1).logits, results["logits"])
    assert torch.equal(here.generate(**inputs, max_new_tokens=4), results["answer"])


def test_files(release, facts, state):
    weights = load_file(release / "model.safetensors")
    expected = megatron_to_hf(state, facts)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())

    config = FocusLlavaConfig.from_pretrained(release)
    # (height, width) of the same canvases in the same order.
    assert config.image_grid_pinpoints == [[h, w] for w, h in facts.image.grid_pinpoints]
    assert config.vision_config.num_hidden_layers == facts.vision.num_layers + 1
    generation = json.loads((release / "generation_config.json").read_text())
    assert generation["eos_token_id"] == facts.tokens.eos_token_ids
    assert generation["pad_token_id"] == facts.tokens.pad_token_id
    assert generation["suppress_tokens"] == [facts.tokens.image_token_id]
    processor = json.loads((release / "processor_config.json").read_text())
    assert processor["num_additional_image_tokens"] == 1
    assert processor["image_processor"]["size"] == {"shortest_edge": tiny.TILE}
    # The template of the training, not the one that the tokenizer came with.
    assert (release / "chat_template.jinja").read_text() == CHAT_TEMPLATES["vicuna"]
    assert AutoTokenizer.from_pretrained(release).chat_template == CHAT_TEMPLATES["vicuna"]
    assert (release / "README.md").read_text().startswith("---\nlibrary_name: transformers")
    assert not list(release.parent.glob(".*"))


def test_large_weights_are_split(facts, state, tokenizer_folder, tmp_path):
    write_release(
        InMemory(state), facts, tokenizer_folder, tmp_path / "out", dtype=torch.bfloat16, max_shard_size="200KB"
    )
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    model = FocusLlavaForConditionalGeneration.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    for name, tensor in megatron_to_hf(state, facts).items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_tied_embeddings(family, facts, tokenizer_folder, tmp_path):
    tied = tiny_facts(family, tied=True, **vars(facts.tokens))
    write_release(InMemory(random_state(tied)), tied, tokenizer_folder, tmp_path / "out", dtype=torch.float32)
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    model, report = FocusLlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_refusals(release, facts, state, tokenizer_folder, tmp_path):
    with pytest.raises(ValueError, match="exists; name a new folder"):
        write_release(InMemory(state), facts, tokenizer_folder, release, dtype=torch.float32)
    wrong = tiny_facts(**vars(facts.tokens) | {"image_token_id": 3})
    with pytest.raises(ValueError, match="for <image>, the model 3"):
        write_release(InMemory(state), wrong, tokenizer_folder, tmp_path / "out", dtype=torch.float32)
    with pytest.raises(ValueError, match="missing image_newline"):
        partial = {name: tensor for name, tensor in state.items() if name != "image_newline"}
        write_release(InMemory(partial), facts, tokenizer_folder, tmp_path / "out", dtype=torch.float32)
    with pytest.raises(ValueError, match="vision_sampler and text_sampler on"):
        write_release(InMemory(state), facts, tokenizer_folder, tmp_path / "out", layout="llava-next")
    with pytest.raises(ValueError, match=r"tokenizer .* ids, the model only 200"):
        small = tiny_facts(**vars(facts.tokens))
        small = replace(small, text=replace(small.text, vocab_size=200))
        write_release(InMemory(state), small, tokenizer_folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failing_read_leaves_nothing(facts, state, tokenizer_folder, tmp_path):
    class Broken(InMemory):
        def read(self, name):
            if name == "decoder.final_layernorm.weight":
                raise ValueError("the checkpoint is truncated")
            return super().read(name)

    with pytest.raises(ValueError, match="truncated"):
        write_release(Broken(state), facts, tokenizer_folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_shards_are_what_safetensors_writes(facts, state, tokenizer_folder, tmp_path):
    """Every file loads with the library, aligned, with the metadata that transformers looks for."""
    write_release(InMemory(state), facts, tokenizer_folder, tmp_path / "out", max_shard_size="300KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    total = 0
    for path in (tmp_path / "out").glob("*.safetensors"):
        header = int.from_bytes(path.read_bytes()[:8], "little")
        assert header % 8 == 0
        tensors = load_file(path)
        assert {index["weight_map"][name] for name in tensors} == {path.name}
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
        total += sum(tensor.nbytes for tensor in tensors.values())
    assert total == index["metadata"]["total_size"]
