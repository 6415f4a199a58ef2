"""Loading a released model for inference."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import LlavaNextProcessor

from megatron_focus.release.modeling_focus_llava import FocusLlavaForConditionalGeneration


@dataclass(frozen=True)
class Release:
    """A model with what turns conversations into its inputs."""

    model: FocusLlavaForConditionalGeneration
    processor: LlavaNextProcessor


def default_device() -> str:
    """``cuda`` where torch finds one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_release(folder: Path, device: str, dtype: str = "auto") -> Release:
    """Load a folder that ``tools/export_hf.py`` wrote, with this repository's code rather than the folder's.

    Args:
        folder: the release.
        device: by torch's names.
        dtype: one of ``options.DTYPES``.

    Raises:
        ValueError: naming the folder and what is wrong with it, or the device.
        OSError: the storage that it lies on cannot be read, now at least.
    """
    target = _device(device)
    _check_kind(folder)
    try:
        loaded: Any = FocusLlavaForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            local_files_only=True,
            output_loading_info=True,
        )
        model, report = loaded
        # With the configuration given, it does not ask whether to run the folder's code to read it.
        processor = LlavaNextProcessor.from_pretrained(folder, config=model.config, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        # transformers raises OSError for a folder that lacks something, too, but without the system's error number.
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise OSError(f"{folder}: {error}") from error
        raise ValueError(f"{folder}: {error}") from error
    if report["missing_keys"]:
        raise ValueError(f"{folder}: its weights lack {sorted(report['missing_keys'])}")
    processor.tokenizer.padding_side = "left"  # answers begin where the prompts end
    return Release(model.to(target).eval(), processor)


def _device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: if there is none.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is none of torch's") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r}: torch finds {torch.cuda.device_count()} CUDA devices here")
    return device


def _check_kind(folder: Path) -> None:
    """Whether the folder looks like a release.

    Raises:
        ValueError: if not.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: not a release, it has no config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not json ({error})") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "focus_llava":
        raise ValueError(f"{file}: not a release, model_type is {kind!r} and not 'focus_llava'")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: no weights, it has no file *.safetensors")
