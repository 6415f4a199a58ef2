"""The folders a model can be imported from: their tensors under the table's names, and their settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlavaNextConfig, PretrainedConfig

from megatron_focus.config.schema import ModelConfig, TextSamplerConfig, VisionSamplerConfig
from megatron_focus.conversion.architecture import check_llava_next, language_config, model_type, vision_config
from megatron_focus.conversion.hf_names import (
    ANY_LLAVA_NEXT,
    LANGUAGE_MODEL,
    RELEASE,
    VISION_TOWER,
    JoinedTensors,
    RenamedTensors,
)
from megatron_focus.conversion.importable import check_importable
from megatron_focus.conversion.model_facts import TEXT_FAMILIES
from megatron_focus.conversion.safetensors_folder import SafetensorsFolder
from megatron_focus.conversion.tensor_source import RowSource
from megatron_focus.release.configuration_focus_llava import FocusLlavaConfig

PROJECTOR = ("projector.", "image_newline")
SAMPLER = ("vision_sampler.",)


@dataclass(frozen=True, kw_only=True)
class ImportSource:
    """A model to import."""

    description: str
    """The folders, for messages."""
    tensors: RowSource
    """Under the table's Hugging Face names."""
    model: ModelConfig
    """What the folders say of the model; the rest has its defaults. ``vocab_size`` is that of the embedding."""
    language_model: Path
    """Folder whose tokenizer the embedding belongs to."""
    created: tuple[str, ...]
    """How the Megatron names of the parts begin that the folders lack, and that are initialised as training does."""


def language_model_and_tower(language: Path, tower: Path) -> ImportSource:
    """A causal language model, and the vision model of a CLIP checkpoint.

    Raises:
        ValueError: a folder is not what it should be; names file, key and value.
    """
    check_importable(language)
    check_importable(tower)
    kind = model_type(language)
    if kind not in TEXT_FAMILIES:
        raise ValueError(f"{language}: model_type {kind!r} cannot be imported; it must be one of {TEXT_FAMILIES}")
    kind = model_type(tower)
    if kind not in ("clip", "clip_vision_model"):
        raise ValueError(f"{tower}: model_type {kind!r} is not a CLIP model")
    vision = _config(AutoConfig, tower)
    vision = vision.vision_config if kind == "clip" else vision
    vision_settings, image = vision_config(vision, f"{tower}/config.json")
    return ImportSource(
        description=f"{language} and {tower}",
        tensors=JoinedTensors(
            RenamedTensors(SafetensorsFolder(language), LANGUAGE_MODEL),
            RenamedTensors(SafetensorsFolder(tower), VISION_TOWER),
        ),
        model=ModelConfig(
            language=language_config(_config(AutoConfig, language), f"{language}/config.json"),
            vision=vision_settings,
            image=image,
        ),
        language_model=language,
        created=(*PROJECTOR, *SAMPLER),
    )


def whole_model(folder: Path) -> ImportSource:
    """A LLaVA-NeXT in the layout of ``llava-hf``, or a release of this project.

    Raises:
        ValueError: the folder is neither; names file, key and value.
    """
    check_importable(folder)
    kind = model_type(folder)
    if kind == "llava_next":
        config, rules, samplers = _config(LlavaNextConfig, folder), ANY_LLAVA_NEXT, {}
    elif kind == "focus_llava":
        config, rules = _config(FocusLlavaConfig, folder), RELEASE
        samplers = _samplers(config)
    else:
        raise ValueError(f"{folder}: model_type {kind!r} cannot be imported; it must be llava_next or focus_llava")
    where = f"{folder}/config.json"
    check_llava_next(config, where)
    language = language_config(config.text_config, f"{where}: text_config")
    # LLaVA-NeXT's own key decides over the text model's.
    language.share_embeddings_and_output_weights = bool(config.tie_word_embeddings)
    sampler = config.vision_sampler if kind == "focus_llava" else {"enabled": False}
    has_sampler = sampler["enabled"] and sampler["method"] == "learned"
    vision, image = vision_config(config.vision_config, f"{where}: vision_config")
    image.grid_pinpoints = [[width, height] for height, width in config.image_grid_pinpoints]
    return ImportSource(
        description=str(folder),
        tensors=RenamedTensors(SafetensorsFolder(folder), rules),
        model=ModelConfig(language=language, vision=vision, image=image, **samplers),
        language_model=folder,
        created=() if has_sampler else SAMPLER,
    )


def _samplers(config: PretrainedConfig) -> dict[str, Any]:
    """A release's samplers; what only training knows has its defaults."""
    vision, text = config.vision_sampler, config.text_sampler
    mode = TextSamplerConfig.mode if text["enabled"] else "off"
    return {
        "vision_sampler": VisionSamplerConfig(**vision),
        "text_sampler": TextSamplerConfig(mode=mode, layer=text["layer"], gamma=text["gamma"]),
    }


def _config(kind: Any, folder: Path) -> Any:
    try:
        config = kind.from_pretrained(folder)
    except Exception as error:  # transformers' checks have no common base
        raise ValueError(f"{folder}/config.json: {error}") from error
    return config
