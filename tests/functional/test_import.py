"""From published weights to training and back: bit-exact, whatever the family and the layout in between."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlavaNextForConditionalGeneration

from data_pipeline.anyres import plan_tiles
from megatron_focus.checkpoint.state import load_weights, save_weights
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.loading import dump_config, load_config
from tests.distributed.harness import run_ranks
from tests.distributed.workers import start
from tests.tiny import GEOMETRY
from tests.unit.conversion import hf_folders
from tests.unit.conversion.hf_folders import LLAMA3_ROPE, OVERRIDES, ROWS
from tools.export_hf import main as export_hf
from tools.import_hf import main as import_hf

FAMILIES = {
    "llama 2": {"family": "llama", "num_key_value_heads": 4},
    "llama 3.1": {"family": "llama", "rope_parameters": LLAMA3_ROPE},
    "llama 3.2, tied": {"family": "llama", "rope_parameters": LLAMA3_ROPE | {"factor": 32.0}, "tie": True},
    "qwen 2.5, tied": {"family": "qwen2", "tie": True},
    "qwen 2.5, bf16": {"family": "qwen2", "dtype": torch.bfloat16},
    "mistral, wide heads": {"family": "mistral", "head_dim": 32},
}
UNREAD = ("vision_tower.vision_model.encoder.layers.2.", "vision_tower.vision_model.post_layernorm.")
"""Of a LLaVA-NeXT with a tower of three layers: those that it never reads."""


def load_and_save(pretrained, config, out):
    """Start from the weights at this layout and write them again."""
    _, parts = start(config)
    load_weights(CheckpointStore(pretrained).latest(), parts)
    save_weights(CheckpointStore(out), parts.chunks, dump_config(config))


def through_training(imported, tmp_path):
    """The checkpoint as a run at TP 2 x PP 2 writes it."""
    config = load_config(imported / "iter_0000000" / "config.yaml")
    config.parallel.tensor_model_parallel_size = config.parallel.pipeline_model_parallel_size = 2
    run_ranks(load_and_save, 4, str(imported), config, str(tmp_path / "trained"))
    return tmp_path / "trained"


@pytest.mark.parametrize("name", FAMILIES)
def test_language_model_and_tower_come_back_bit_exact(name, tmp_path):
    settings = dict(FAMILIES[name])
    family, dtype = settings.pop("family"), settings.pop("dtype", torch.float32)
    tied = settings.pop("tie", False)
    settings["tie_word_embeddings"] = tied
    # Written in several shards, and the tower both alone and as part of a CLIP model.
    llm = hf_folders.write_language_model(tmp_path / "llm", family, dtype, max_shard_size="60KB", **settings)
    tower = hf_folders.write_tower(tmp_path / "clip", whole=tied, dtype=dtype)
    tokenizer = hf_folders.write_tokenizer(tmp_path / "tokenizer")
    arguments = ["--llm", str(llm), "--vision", str(tower), "--tokenizer", str(tokenizer), "--quiet"]
    assert import_hf([*arguments, "--output", str(tmp_path / "imported"), *OVERRIDES]) == 0
    trained = through_training(tmp_path / "imported", tmp_path)
    release = tmp_path / "release"
    assert export_hf(["--checkpoint", str(trained), "--output", str(release), "--max-shard-size", "100KB"]) == 0

    after = _tensors(release)
    for folder, begins in ((llm, "model.language_model."), (tower, "model.vision_tower.")):
        for before_name, tensor in _tensors(folder).items():
            place = before_name.removeprefix("vision_model.").removeprefix("model.")
            # Read neither by LLaVA nor here: the tower's last layer, the norm after it, CLIP's text half.
            if place.startswith(("encoder.layers.2.", "post_layernorm.", "text_", "visual_", "logit_scale")):
                continue
            found = after[place if place == "lm_head.weight" else begins + place]
            assert found.dtype == dtype
            if len(found) == ROWS + 2:
                new, found = found[ROWS:], found[:ROWS]
                # A sum in float64 against one in float32, rounded to the weights' type.
                torch.testing.assert_close(new.float(), tensor.float().mean(0).expand(2, -1), atol=2e-3, rtol=1e-2)
            assert torch.equal(found, tensor), before_name
    assert ("lm_head.weight" in after) == (not tied)

    before = AutoModelForCausalLM.from_pretrained(llm).config
    text = AutoModelForImageTextToText.from_pretrained(release, trust_remote_code=True).config.text_config
    for key in ("rope_parameters", "rms_norm_eps", "num_key_value_heads", "max_position_embeddings"):
        assert getattr(text, key) == getattr(before, key), key
    assert text.head_dim == getattr(before, "head_dim", 16)  # Qwen2's has no such key
    assert text.model_type == family and text.vocab_size == ROWS + 2
    # The head has two rows more, so its sums may run in another order; the same bits were seen.
    assert _logits_apart(llm, release) < 1e-5


def test_half_precision_weights_come_back_bit_exact(tmp_path):
    """Llama 2, Vicuna and LLaVA 1.6 are published in fp16; what is not trained between keeps type, bits and logits."""
    llm = hf_folders.write_language_model(tmp_path / "llm", "llama", torch.float16, num_key_value_heads=4)
    tower = hf_folders.write_tower(tmp_path / "clip", dtype=torch.float16)
    tokenizer = hf_folders.write_tokenizer(tmp_path / "tokenizer")
    imported, release = tmp_path / "imported", tmp_path / "release"
    arguments = ["--llm", str(llm), "--vision", str(tower), "--tokenizer", str(tokenizer), "--quiet"]
    assert import_hf([*arguments, "--output", str(imported), *OVERRIDES]) == 0
    assert export_hf(["--checkpoint", str(imported), "--output", str(release), "--quiet"]) == 0
    before, after = _tensors(llm), _tensors(release)
    for name, tensor in before.items():
        found = after[name if name == "lm_head.weight" else f"model.language_model.{name.removeprefix('model.')}"]
        assert found.dtype == torch.float16 and torch.equal(found[: len(tensor)], tensor), name
    assert _logits_apart(llm, release) < 1e-5


def test_half_precision_weights_are_trained_unrounded_in_fp32(tmp_path):
    """What a run in fp32 updates begins as exactly the fp16 values, which bf16 could not hold."""
    folder = hf_folders.write_llava_next(tmp_path / "llava")
    path = folder / "model.safetensors"
    before = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(before, path, metadata={"format": "pt"})
    off = ["model.vision_sampler.enabled=false", "model.text_sampler.mode='off'", "training.precision=fp32"]
    arguments = ["--model", str(folder), "--output", str(tmp_path / "imported"), "--quiet"]
    assert import_hf([*arguments, *OVERRIDES, *off]) == 0
    config = load_config(tmp_path / "imported" / "iter_0000000" / "config.yaml")
    run_ranks(load_and_save, 1, str(tmp_path / "imported"), config, str(tmp_path / "trained"))
    arguments = ["--checkpoint", str(tmp_path / "trained"), "--output", str(tmp_path / "release")]
    assert export_hf([*arguments, "--format", "llava-next"]) == 0
    after = _tensors(tmp_path / "release")
    for name, tensor in before.items():
        if not name.startswith(UNREAD):
            assert after[name].dtype == torch.float32 and torch.equal(after[name], tensor.float()), name
    assert any(not torch.equal(tensor.bfloat16().half(), tensor) for tensor in before.values())


def test_llava_next_comes_back_as_llava_next(tmp_path):
    """Every tensor, the published names, and the logits: no tolerance, as nothing is computed between."""
    folder = hf_folders.write_llava_next(tmp_path / "llava")
    off = ["model.vision_sampler.enabled=false", "model.text_sampler.mode='off'"]
    arguments = ["--model", str(folder), "--output", str(tmp_path / "imported"), "--quiet"]
    assert import_hf([*arguments, *OVERRIDES, *off]) == 0
    trained, release = through_training(tmp_path / "imported", tmp_path), tmp_path / "release"
    assert export_hf(["--checkpoint", str(trained), "--output", str(release), "--format", "llava-next"]) == 0
    before, after = _tensors(folder), _tensors(release)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if not name.startswith(UNREAD))

    plan = plan_tiles(100, 60, GEOMETRY)
    tiles = 1 + plan.rows * plan.cols
    stock = LlavaNextForConditionalGeneration.from_pretrained(folder)
    again, report = LlavaNextForConditionalGeneration.from_pretrained(release, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    inputs = _inputs(stock, tiles)
    with torch.no_grad():
        assert torch.equal(stock(**inputs).logits, again(**inputs).logits)
    assert not list(release.glob("*.py"))
    assert "trust_remote_code" not in (release / "README.md").read_text()


def test_a_release_can_be_imported_again(tmp_path):
    """Import, export, import, export: the second release has the first one's tensors and samplers."""
    folder = hf_folders.write_llava_next(tmp_path / "llava", "qwen2", tie_word_embeddings=True)
    extra = [*OVERRIDES, "model.text_sampler.gamma=0.7", "model.vision_sampler.scales=[1x1,2x2]"]
    for source, name in ((folder, "one"), (tmp_path / "one", "two")):
        arguments = ["--model", str(source), "--output", str(tmp_path / f"import-{name}"), "--quiet"]
        # What a release cannot know is said again: the range of the random draw.
        assert import_hf([*arguments, *(extra if name == "one" else OVERRIDES[1:])]) == 0
        assert export_hf(["--checkpoint", str(tmp_path / f"import-{name}"), "--output", str(tmp_path / name)]) == 0
    one, two = _tensors(tmp_path / "one"), _tensors(tmp_path / "two")
    assert one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert one["model.vision_sampler.selector.weight"].shape == (2, 16)
    assert (tmp_path / "one" / "config.json").read_text() == (tmp_path / "two" / "config.json").read_text()


def test_training_starts_from_the_written_settings(tmp_path, dataset):
    """``--write-config`` gives the base of a run's file: nothing of the architecture has to be typed."""
    from tests.functional.runs import train

    llm = hf_folders.write_language_model(tmp_path / "llm", "llama", vocab_size=400)
    (llm / "tokenizer.json").unlink()  # the data set has a tokenizer of its own
    tower = hf_folders.write_tower(tmp_path / "clip")
    arguments = ["--llm", str(llm), "--vision", str(tower), "--tokenizer", str(dataset / "tokenizer"), "--quiet"]
    arguments += ["--output", str(tmp_path / "imported"), "--write-config", str(tmp_path / "base.yaml")]
    assert import_hf([*arguments, *OVERRIDES]) == 0
    (tmp_path / "run.yaml").write_text(
        f"base: base.yaml\ndata: {{path: {dataset / 'shards'}, max_sequence_length: 800, num_workers: 0}}\n"
        f"training: {{train_iters: 1, global_batch_size: 4}}\ncheckpoint: {{save: {tmp_path / 'run'}}}\n"
    )
    config = load_config(tmp_path / "run.yaml")
    assert config.training.precision == "fp32"
    (result,) = run_ranks(train, 1, config)
    assert any("starting from the weights" in line for line in result.said)
    assert torch.isfinite(torch.tensor(result.losses)).all()


PEAK = """
import re, sys
from {module} import main
import megatron_focus.conversion.checkpoint_reader, megatron_focus.conversion.export
import megatron_focus.conversion.import_sources, megatron_focus.conversion.importing
def memory(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = memory("VmRSS")
code = main(sys.argv[1:])
print("peak", memory("VmHWM") - before, code)
"""


@pytest.mark.slow
def test_memory_stays_near_the_largest_tensor(tmp_path):
    """Of a 0.8 GB model whose embedding has 0.2 GB, beyond the interpreter and the libraries."""
    vocabulary, hidden, layers = 50000, 2048, 4
    sizes = {"hidden_size": hidden, "intermediate_size": 7168, "num_hidden_layers": layers, "head_dim": 512}
    config = hf_folders.text_config("llama", vocab_size=vocabulary, **sizes)
    config.dtype = torch.bfloat16
    config.save_pretrained(tmp_path / "llm")
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    tensors = {name: torch.zeros(meta.shape, dtype=torch.bfloat16) for name, meta in shapes.items()}
    total, largest = sum(t.nbytes for t in tensors.values()), max(t.nbytes for t in tensors.values())
    save_file(tensors, tmp_path / "llm" / "model.safetensors", metadata={"format": "pt"})
    del tensors
    tower = hf_folders.write_tower(tmp_path / "clip", dtype=torch.bfloat16)
    tokenizer = hf_folders.write_tokenizer(tmp_path / "tokenizer")
    imported = ["--llm", str(tmp_path / "llm"), "--vision", str(tower), "--tokenizer", str(tokenizer), *OVERRIDES]
    exported = ["--checkpoint", str(tmp_path / "out"), "--output", str(tmp_path / "release")]
    for module, arguments in (
        ("tools.import_hf", [*imported, "--output", str(tmp_path / "out")]),
        ("tools.export_hf", exported),
    ):
        command = [sys.executable, "-c", PEAK.format(module=module), *arguments, "--quiet"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
        _, peak, code = run.stdout.splitlines()[-1].split()
        # A tensor, a copy of it on its way to the file, and about 0.1 GB of tables, tokenizer and buffers.
        assert code == "0" and int(peak) < 2 * largest + 0.15e9 < total, f"{module}: {int(peak) / 1e9:.2f} GB"


def _tensors(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def _logits_apart(llm, release):
    """Largest difference of the logits of 300 tokens of text, as a share of the largest logit, in float32."""
    stock = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    again = AutoModelForImageTextToText.from_pretrained(release, dtype=torch.float32, trust_remote_code=True)
    ids = torch.arange(300)[None] % ROWS
    with torch.no_grad():
        before, after = stock(ids).logits, again(input_ids=ids).logits[..., :ROWS]
    return ((after - before).abs().max() / before.abs().max()).item()


def _inputs(model, tiles):
    """One image of 100 x 60 pixels before some text."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, tiles, 3, GEOMETRY.tile_size, GEOMETRY.tile_size, generator=generator)
    sizes = torch.tensor([[100, 60]])
    features = model.get_image_features(pixels, sizes, return_dict=True).pooler_output[0]
    text = torch.randint(0, 250, (12,), generator=generator)
    ids = torch.cat([text[:3], torch.full((len(features),), ROWS), text[3:]])[None]
    return {"input_ids": ids, "pixel_values": pixels, "image_sizes": sizes}
