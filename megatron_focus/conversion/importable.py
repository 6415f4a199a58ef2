"""Folders that hold something else than a model's weights as they were trained, each refused with the way out."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.published_folder import check_folder

_ADAPTER = "adapter_config.json"
_UNDONE = ("bitsandbytes", "higgs")
"""Quantisation methods that transformers' ``dequantize`` undoes."""
_CLASSES = {
    "llava_next": "AutoModelForImageTextToText",
    "clip": "CLIPModel",
    "clip_vision_model": "CLIPVisionModel",
}


def check_importable(folder: Path) -> None:
    """Refuse what cannot be imported whatever its architecture is.

    Raises:
        ValueError: no folder; a LoRA adapter, weights in Meta's own or in llama.cpp's format, or quantised weights.
    """
    check_folder(folder)
    if (folder / _ADAPTER).is_file():
        adapter = _json(folder / _ADAPTER)
        base = adapter.get("base_model_name_or_path") or "BASE_MODEL"
        if adapter.get("task_type") == "CAUSAL_LM":
            load = f"peft.AutoPeftModelForCausalLM.from_pretrained('{folder}')"
        else:  # peft has no class for these; the base model is a LLaVA-NeXT, or was adapted without a task
            load = f"peft.PeftModel.from_pretrained(transformers.CLASS.from_pretrained('{base}'), '{folder}')"
        raise ValueError(
            f"{folder} is an adapter ({_ADAPTER}) of {base}, not a model; merge it and import NEW_FOLDER: "
            f"{load}.merge_and_unload().save_pretrained('NEW_FOLDER')"
            + (
                " (CLASS: AutoModelForCausalLM, or AutoModelForImageTextToText for a LLaVA-NeXT)"
                if "CLASS" in load
                else ""
            )
        )
    if not (folder / "config.json").is_file():
        for pattern, what in (("consolidated*.pth", "Meta's"), ("*.gguf", "llama.cpp's")):
            if found := sorted(folder.glob(pattern)):
                raise ValueError(
                    f"{folder} has {what} own format ({found[0].name}) and no config.json; import the folder that is "
                    "published for transformers"
                )
        return
    config = _json(folder / "config.json")
    quantised = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if quantised:
        method = _method(quantised)
        way = "import the unquantised model that they were made from"
        if method in _UNDONE:
            way += (
                ", or dequantise them and import NEW_FOLDER: "
                f"transformers.{saving_class(folder)}.from_pretrained('{folder}').dequantize()"
                ".save_pretrained('NEW_FOLDER')"
            )
        raise ValueError(f"{folder}/config.json: quantization_config: the weights are quantised ({method}); {way}")


def saving_class(folder: Path) -> str:
    """Name of the class of transformers that loads and saves all tensors of a model (AutoModel leaves out the head)."""
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return _CLASSES.get(str(config.get("model_type")), "AutoModelForCausalLM")


def _method(quantised: Any) -> str:
    return str(quantised.get("quant_method", "unnamed method")) if isinstance(quantised, dict) else str(quantised)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, not {type(content).__name__}")
    return content
