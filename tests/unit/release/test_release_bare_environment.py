"""Exported folders in virtual environments of torch, transformers and pillow, with nothing of this repository.

Takes minutes and downloads packages, so it runs only when it is asked for by its marker: ``pytest -m release_venv``.
"""

import importlib.metadata
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_focus.release.modeling_focus_llava import FocusLlavaForConditionalGeneration
from tests.unit.conversion.hf_folders import LLAMA3_ROPE
from tests.unit.conversion.tiny_release import export_checkpoint, export_llava_next
from tests.unit.release.bare_environment import make_environment, run_script

USER_SCRIPT = r"""
import importlib.metadata, importlib.util, json, sys
from pathlib import Path
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
# As much as pip brought with the three, and none of it ours.
absent = ["megatron", "megatron_focus", "data_pipeline", "torchvision", "matplotlib", "datasets", "accelerate"]
found = [name for name in absent if importlib.util.find_spec(name)]

processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
images = [Image.open(out / "one.png"), Image.open(out / "two.png")]

def said(role, *parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return {"role": role, "content": content}

chats = [
    [said("user", images[0], "what is this?")],
    [said("user", *images, "compare"), said("assistant", "a cat"), said("user", "and here?")],
    [said("user", "no picture")],
]
form = {"tokenize": True, "return_dict": True, "processor_kwargs": {"padding": True, "return_tensors": "pt"}}
inputs = processor.apply_chat_template(chats, add_generation_prompt=True, **form)
ask = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_selection": True}
batch = model.generate(**inputs, **ask)
model.set_samplers(gamma=0.3, scales=["2x2", "4x4"])
fewer = model.generate(**inputs, **ask)
model.set_samplers(gamma=0.6, scales=["1x1", "2x2", "4x4"])

pipe = pipeline("image-text-to-text", model=str(folder), trust_remote_code=True)
single = processor.apply_chat_template(chats[0], add_generation_prompt=True, **form)
alone = model.generate(**single, max_new_tokens=5, do_sample=False)
piped = pipe(text=chats[0], max_new_tokens=5, do_sample=False, return_full_text=False)
several = pipe(text=chats[:2], max_new_tokens=5, do_sample=False, return_full_text=False, batch_size=2)
torch.save(dict(inputs), out / "inputs.pt")
(out / "facts.json").write_text(json.dumps({
    "found": found,
    "packages": sorted(f"{d.name} {d.version}" for d in importlib.metadata.distributions()),
    "batch": batch.sequences.tolist(),
    "fewer": fewer.sequences.tolist(),
    "kept": [[s.num_kept for s in output.selection] for output in (batch, fewer)],
    "alone": processor.decode(alone[0, single["input_ids"].shape[1]:], skip_special_tokens=True),
    "piped": piped[0]["generated_text"],
    "several": [answer[0]["generated_text"] for answer in several],
}))
"""


LLAVA_NEXT_SCRIPT = r"""
import json, sys
from pathlib import Path
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlavaNextForConditionalGeneration

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
processor, tokenizer = AutoProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
model, report = LlavaNextForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
images = [Image.open(folder.parent / name) for name in ("one.png", "two.png")]

def question(text, *pictures):
    content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": text}]
    return [{"role": "user", "content": content}]

chats = [question("what is it?", images[0]), question("and the two?", *images), question("a dog", images[1])]
form = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "padding": True, "add_generation_prompt": True}
inputs = dict(processor.apply_chat_template(chats, **form))
with torch.no_grad():
    logits = model(**inputs).logits
answers = model.generate(**inputs, max_new_tokens=6)
torch.save({
    "inputs": inputs,
    "text": torch.tensor(tokenizer("a cat <image> <|eot_id|>").input_ids),
    "logits": logits,
    "answers": answers,
}, out)
print(json.dumps({
    "report": {key: list(value) for key, value in report.items()},
    "said": processor.batch_decode(answers[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True),
}))
"""


@pytest.fixture(autouse=True)
def asked_for(request):
    if "release_venv" not in request.config.getoption("markexpr"):
        pytest.skip("makes a virtual environment, which takes minutes and downloads packages: pytest -m release_venv")


@pytest.fixture
def pictures(tmp_path):
    for name, (width, height) in {"one": (97, 61), "two": (40, 150)}.items():
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")


@pytest.mark.slow
@pytest.mark.release_venv
def test_release_in_an_environment_of_three_packages(tmp_path, pictures):
    release = export_checkpoint(tmp_path)
    python = make_environment(tmp_path / "venv", importlib.metadata.version("transformers"))
    run_script(python, USER_SCRIPT, tmp_path, release, tmp_path)

    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["found"] == []
    assert facts["alone"] == facts["piped"] == facts["several"][0]
    assert [len(kept) for kept in facts["kept"]] == [3, 3]
    assert sum(facts["kept"][0]) > sum(facts["kept"][1])
    inputs = torch.load(tmp_path / "inputs.pt", weights_only=True)
    form = {"max_new_tokens": 5, "do_sample": False}
    model = FocusLlavaForConditionalGeneration.from_pretrained(release)
    # The same code on the same weights.
    assert model.generate(**inputs, **form).tolist() == facts["batch"]
    model.set_samplers(gamma=0.3, scales=["2x2", "4x4"])
    assert model.generate(**inputs, **form).tolist() == facts["fewer"]


@pytest.mark.slow
@pytest.mark.release_venv
def test_llava_next_in_transformers_4(tmp_path, pictures):
    """The folder means the same in both: ids, pixels, logits, answers. vLLM and SGLang read it with either."""
    old = make_environment(tmp_path / "venv", "4.57.6")
    for family, text in (("llama", {"rope_parameters": LLAMA3_ROPE}), ("qwen2", {}), ("mistral", {})):
        (work := tmp_path / family).mkdir()
        for name in ("one.png", "two.png"):
            (work / name).hardlink_to(tmp_path / name)
        folder, _ = export_llava_next(work, family, **text)
        said, results = [], []
        for python in (sys.executable, old):
            out = work / "results.pt"
            said.append(json.loads(run_script(python, LLAVA_NEXT_SCRIPT, work, folder, out).splitlines()[-1]))
            results.append(torch.load(out, weights_only=True))
        new, four = results
        assert said[0] == said[1] and not any(said[1]["report"].values())
        assert four["inputs"].keys() == {"input_ids", "attention_mask", "pixel_values", "image_sizes"}
        for key, value in new["inputs"].items():
            # Both resize with Pillow and then normalise, in float32 and float64.
            torch.testing.assert_close(four["inputs"][key], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(four["logits"], new["logits"], rtol=0, atol=1e-4)
        assert torch.equal(four["answers"], new["answers"]) and torch.equal(four["text"], new["text"])
