"""An exported release in a virtual environment of torch, transformers and pillow, with nothing of this repository.

Takes minutes and downloads packages, so it runs only when it is asked for by its marker: ``pytest -m release_venv``.
"""

import importlib.metadata
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_focus.release.modeling_focus_llava import FocusLlavaForConditionalGeneration
from tests.unit.conversion.tiny_release import export_checkpoint

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


def make_environment(folder) -> str:
    """Its interpreter. Versions are those that run here."""
    # The interpreter beneath this one, so that nothing of this environment shows through.
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    python = str(folder / "bin" / "python")
    torch_version = torch.__version__.partition("+")[0]
    packages = [f"torch=={torch_version}", f"transformers=={importlib.metadata.version('transformers')}", "pillow"]
    run = subprocess.run(
        [python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True, timeout=1800
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return python


@pytest.mark.slow
@pytest.mark.release_venv
def test_release_in_an_environment_of_three_packages(tmp_path, request):
    if "release_venv" not in request.config.getoption("markexpr"):
        pytest.skip("makes a virtual environment, which takes minutes and downloads packages: pytest -m release_venv")
    release = export_checkpoint(tmp_path)
    for name, (width, height) in {"one": (97, 61), "two": (40, 150)}.items():
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    script = tmp_path / "user.py"
    script.write_text(USER_SCRIPT)
    python = make_environment(tmp_path / "venv")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, str(script), str(release), str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]

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
