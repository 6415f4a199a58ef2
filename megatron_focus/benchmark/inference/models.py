"""The two models that are compared: a release of this project and transformers' own LLaVA-NeXT, with the same weights.

Shapes: g cells along a tile side, W windows.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration

from megatron_focus.benchmark.inference.prompts import END, START, prompt_inputs
from megatron_focus.benchmark.placeholder_tokenizer import placeholder_tokenizer
from megatron_focus.benchmark.presets import Preset
from megatron_focus.benchmark.workload import SEED, image_token_id
from megatron_focus.conversion.from_config import model_facts
from megatron_focus.conversion.release_config import llava_next_config, release_config
from megatron_focus.release.modeling_focus_llava import FocusLlavaForConditionalGeneration

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference between both models' logits, as a share of the largest logit; float32 differs by about 1e-6."""
_COMPARED_TOKENS = 16
"""Last tokens of each prompt, which have seen the whole image; logits of all would take more memory than the run."""


@dataclass(frozen=True)
class Models:
    """Both, loaded from folders as a user loads them."""

    stock: LlavaNextForConditionalGeneration
    focus: FocusLlavaForConditionalGeneration


def build_models(preset: Preset, device: torch.device) -> Models:
    """Random weights, written as two folders and loaded from there with ``from_pretrained``.

    Args:
        preset: the model, both samplers on, and the largest batch, whose images the selector is spread over.
        device: where the models go; float32 on a CPU, bfloat16 on CUDA.
    """
    dtype = DTYPES[device.type]
    facts = model_facts(preset.model, placeholder_tokenizer(image_token_id(preset)), "plain")
    config = release_config(facts, dtype)
    config.instruction_start_token_ids, config.instruction_end_token_ids = [[START]], [[END]]
    off = replace(
        facts,
        vision_sampler=facts.vision_sampler | {"enabled": False},
        text_sampler=facts.text_sampler | {"enabled": False},
    )
    torch.manual_seed(SEED)
    with device:
        focus: Any = FocusLlavaForConditionalGeneration(config)
        stock: Any = LlavaNextForConditionalGeneration(llava_next_config(off, dtype))
    focus.to(dtype).eval()
    stock.to(dtype)
    spread_choices(focus, prompt_inputs(preset, device, dtype))
    stock.load_state_dict({name: t for name, t in focus.state_dict().items() if "vision_sampler" not in name})
    with tempfile.TemporaryDirectory() as folder:
        focus.save_pretrained(Path(folder) / "focus")
        stock.save_pretrained(Path(folder) / "stock")
        del focus, stock
        return Models(
            stock=_loaded(LlavaNextForConditionalGeneration, Path(folder) / "stock", device),
            focus=_loaded(FocusLlavaForConditionalGeneration, Path(folder) / "focus", device),
        )


def _loaded(kind: Any, folder: Path, device: torch.device) -> Any:
    return kind.from_pretrained(folder, dtype="auto", local_files_only=True).to(device).eval()


@torch.no_grad()
def spread_choices(model: FocusLlavaForConditionalGeneration, inputs: dict[str, Tensor]) -> None:
    """Give the selector a random weight whose logits have mean 0 in every image, and variance 1, for every scale.

    A fresh selector sends almost all windows to one scale, and no trained one exists for this model. With near uniform
    choices in every image the sampler keeps about what the paper reports (49 %, its Table 6). A weight that is only
    random tells images apart rather than windows: single images would keep from a tenth to nine tenths.

    Args:
        model: with a vision-guided sampler.
        inputs: prompts with an image each, of one size.
    """
    body, sampler = model.model, model.model.vision_sampler
    images = len(inputs["pixel_values"])
    states = body.vision_tower(inputs["pixel_values"].flatten(0, 1), output_hidden_states=True).hidden_states
    features = body.multi_modal_projector(states[model.config.vision_feature_layer][:, 1:]).float()
    tiles, cells, channels = features.shape
    side, window = round(cells**0.5), sampler.window
    blocks = features.view(tiles, side // window, window, side // window, window, channels)
    pooled = blocks.amax(4).amax(2).view(images, -1, channels)
    global_view = features.view(images, -1, cells, channels)[:, 0]  # an image's first tile
    scores = pooled @ global_view.transpose(1, 2) / channels**0.5  # [images, windows of an image, g * g]
    weight, bias = sampler.selector.weight, sampler.selector.bias
    random = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight.device)
    means = scores.mean(1)  # [images, g * g]
    _, extent, directions = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    apart = directions[extent > 1e-5 * scores.abs().max()]  # in which the images differ
    random -= random @ apart.T @ apart
    std, mean = torch.std_mean(scores.flatten(0, 1) @ random.T, dim=0)
    weight.copy_(random / std[:, None])
    bias.copy_(-mean / std)


@torch.no_grad()
def logit_difference(models: Models, inputs: dict[str, Tensor]) -> float:
    """Largest difference between the logits with the samplers off, as a share of the largest logit.

    Raises:
        ValueError: it is beyond rounding, so the two would not be comparable.
    """
    models.focus.set_samplers(vision=False, text=False)
    expected = models.stock(**inputs, use_cache=False, logits_to_keep=_COMPARED_TOKENS).logits.float()
    found = models.focus(**inputs, use_cache=False, logits_to_keep=_COMPARED_TOKENS).logits.float()
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= LOGIT_TOLERANCE[models.stock.dtype]:
        raise ValueError(
            f"both models should compute the same, but their logits differ by {difference:.1e} in {models.stock.dtype}"
        )
    return difference
