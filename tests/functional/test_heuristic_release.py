"""A model with the heuristic sampler: Megatron and the release compute the same, and it goes out and in again."""

import torch
from transformers import AutoModelForImageTextToText

from megatron_focus.checkpoint.state import CONFIG_FILE
from megatron_focus.config.loading import load_config
from megatron_focus.config.schema import ModelConfig, VisionSamplerConfig
from megatron_focus.release.modeling_focus_llava import FocusLlavaForConditionalGeneration
from tests.distributed.harness import run_ranks
from tests.functional.runs import train
from tests.functional.sides import both_sides, family, hf_inputs, row_of_samples, samples_of
from tests.functional.single import row_inputs
from tools.export_hf import main as export_hf
from tools.import_hf import main as import_hf


def heuristic(model: ModelConfig) -> ModelConfig:
    model.vision_sampler = VisionSamplerConfig(method="heuristic", heuristic_keep=0.6, scales=["1x1"])
    return model


def logits_beside_the_release(tokenizer_folder):
    """Largest difference of logits for each sample of a packed row, and how many tokens went."""
    model = heuristic(family("llama"))
    chunk, release = both_sides(model, tokenizer_folder, FocusLlavaForConditionalGeneration, seed=4)
    row = row_of_samples(tokenizer_folder, seed=6)
    with torch.no_grad():
        result = chunk(row_inputs(model, row, training=False), return_logits=True)
        ours = result.output[:, 0, : model.language.vocab_size].split(result.layout.seqlens)
        theirs = [release(**hf_inputs(row, part)).logits[0] for part in samples_of(row)]
    dropped = sum(int(count) for _, count in result.decoder.dropped)
    return [(len(a), len(b), a - b if len(a) == len(b) else None) for a, b in zip(ours, theirs, strict=True)], dropped


def test_logits_equal_the_release(dataset):
    ((samples, dropped),) = run_ranks(logits_beside_the_release, 1, str(dataset / "tokenizer"))
    assert dropped > 20
    for ours, theirs, difference in samples:
        assert ours == theirs
        assert difference.abs().max() < 1e-4  # 6e-6 was seen


def test_a_trained_model_is_exported_and_imported_again(run_config, tmp_path):
    config = run_config({"tensor_model_parallel_size": 2}, {"train_iters": 1})
    heuristic(config.model)
    run_ranks(train, 2, config)
    release, imported = tmp_path / "release", tmp_path / "imported"
    assert run_ranks(export_hf, 1, ["--checkpoint", config.checkpoint.save, "--output", str(release), "--quiet"]) == [0]
    model = AutoModelForImageTextToText.from_pretrained(release, trust_remote_code=True)
    assert model.config.vision_sampler["method"] == "heuristic"
    assert model.config.vision_sampler["heuristic_keep"] == 0.6
    assert "60% of the cells stay" in (release / "README.md").read_text()
    # The release does not say what layers training draws from.
    arguments = ["--model", str(release), "--output", str(imported), "--quiet", "model.text_sampler.layer_range=[0,3]"]
    assert run_ranks(import_hf, 1, arguments) == [0]
    again = load_config(imported / "iter_0000000" / CONFIG_FILE)
    assert again.model.vision_sampler == config.model.vision_sampler
