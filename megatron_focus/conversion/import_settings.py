"""The configuration of an imported model: what its folders say, its tokenizer, and what the user adds."""

import logging
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from data_pipeline.config import DataConfig
from data_pipeline.conversations.chat_templates import CHAT_TEMPLATES, TEMPLATE_NAMES
from data_pipeline.conversations.form_recognition import PROCESSOR_TEMPLATE, named_form, processor_template, unlike_form
from data_pipeline.conversations.published_tokenizer import FILES, has_tokenizer, published_vocabulary
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import load_tokenizer
from megatron_focus.config.loading import dump_config, load_config
from megatron_focus.config.schema import CheckpointConfig, ModelConfig, RunConfig, TrainingConfig
from megatron_focus.config.validation import validate
from megatron_focus.conversion.import_sources import ImportSource

logger = logging.getLogger(__name__)

_NEW_TOKENS = 2
"""Tokens that an embedding grows by without being asked: image and pad."""
_CHOOSE = f"data.chat_template=NAME chooses one of {', '.join(TEMPLATE_NAMES)}"
_OPEN = {"vocab_size", "make_vocab_size_divisible_by", "max_position_embeddings", "grid_pinpoints", "max_image_pixels"}
"""Keys of the architecture's sections that the tensors do not decide."""


def import_settings(
    source: ImportSource,
    tokenizer_folder: Path,
    checkpoint: Path,
    overrides: Sequence[str],
    dtype: torch.dtype,
    all_dtypes: Collection[torch.dtype],
) -> tuple[RunConfig, PreTrainedTokenizerFast]:
    """The run configuration to start training from, and the tokenizer.

    Args:
        source: the model.
        tokenizer_folder: the tokenizer to train with.
        checkpoint: where the weights will be.
        overrides: ``section.key=value`` strings.
        dtype: type of the embedding in the checkpoint.
        all_dtypes: types of all tensors in the checkpoint.

    Raises:
        ValueError: the tokenizer does not belong to the language model or does not fit its embedding, an override
            contradicts the tensors, or the configuration cannot run.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    _check_same_tokens(source, tokenizer, tokenizer_folder)
    chosen = any(override.startswith("data.chat_template=") for override in overrides)
    longest = source.model.language.max_position_embeddings
    stated = RunConfig(
        model=source.model,
        data=DataConfig(
            tokenizer=str(tokenizer_folder.resolve()),
            chat_template=DataConfig.chat_template if chosen else _template(tokenizer, tokenizer_folder),
            max_sequence_length=min(DataConfig.max_sequence_length, longest),
        ),
        training=TrainingConfig(precision="fp32" if dtype == torch.float32 else "bf16"),
        checkpoint=CheckpointConfig(pretrained=str(checkpoint.resolve())),
    )
    rows = source.model.language.vocab_size
    stated.model.language.vocab_size = max(rows, min(len(tokenizer), rows + _NEW_TOKENS))
    with tempfile.TemporaryDirectory() as folder:  # through the one path by which settings arrive
        path = Path(folder) / "config.yaml"
        path.write_text(dump_config(stated), encoding="utf-8")
        config = load_config(path, overrides)
    _check_sizes(stated.model, config.model)
    _check_vocabulary(config, rows, tokenizer, tokenizer_folder)
    validate(config, world_size=1)
    if torch.float16 in all_dtypes and config.training.precision == "bf16":
        logger.warning(
            "%s: weights of it are fp16, which training.precision=bf16 rounds when training starts, 11 bits to 8; "
            "training.precision=fp32 keeps them exactly",
            source.description,
        )
    return config, tokenizer


def _template(tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    """The form that the tokenizer was prepared for, or else that its model is asked in.

    Raises:
        ValueError: there are several.
    """
    own, of_processor = tokenizer.chat_template, processor_template(folder)
    if of_processor is None and isinstance(own, dict):
        raise ValueError(f"{folder}: its tokenizer has several chat templates ({', '.join(own)}); {_CHOOSE}")
    asked = of_processor or own
    if asked is None:
        return DataConfig.chat_template
    named = [name for name, template in CHAT_TEMPLATES.items() if template == asked]
    if named:
        return named[0]
    if asked == own and _can_be_trained_with(tokenizer):
        return "tokenizer"
    recognised = named_form(tokenizer, asked)
    if recognised is None:
        if asked != own:
            logger.warning(
                "%s/%s: its form is not recognised; data.chat_template=tokenizer trains in the tokenizer's own, which "
                "is another; %s",
                folder,
                PROCESSOR_TEMPLATE,
                _CHOOSE,
            )
        return "tokenizer"
    unlike = unlike_form(tokenizer, asked, recognised)
    logger.warning(
        "%s: its chat template writes turns as %s, so data.chat_template is that form%s",
        folder,
        recognised,
        f", whose {' and '.join(unlike)} the template writes otherwise" if unlike else "",
    )
    return recognised


def _can_be_trained_with(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer's own template takes content as training writes it."""
    try:
        Renderer(tokenizer, "tokenizer")
    except ValueError:
        return False
    return True


def _check_same_tokens(source: ImportSource, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The ids of the language model's own tokenizer, where it has one, must mean the same in the one given."""
    own = source.language_model
    if not has_tokenizer(own):
        files = " or ".join(FILES)
        logger.warning("%s: has no %s, so nothing can say whether %s is the model's tokenizer", own, files, folder)
        return
    given = tokenizer.get_vocab()
    wrong = [(t, i) for t, i in published_vocabulary(own).items() if given.get(t) != i]
    if wrong:
        token, index = min(wrong, key=lambda pair: pair[1])
        raise ValueError(
            f"tokenizer {folder} is not made from that of {own}: {len(wrong)} tokens differ, the first is {token!r}, "
            f"{index} there and {given.get(token)} here; make it with tools/prepare_tokenizer.py"
        )


def _check_sizes(source: ModelConfig, chosen: ModelConfig) -> None:
    problems = []
    for section in ("language", "vision", "image"):
        before, now = vars(getattr(source, section)), vars(getattr(chosen, section))
        changed: list[tuple[str, Any]] = [(k, v) for k, v in before.items() if k not in _OPEN and now[k] != v]
        problems += [f"model.{section}.{key}={now[key]}, but the model has {value}" for key, value in changed]
    if chosen.language.max_position_embeddings > source.language.max_position_embeddings:
        problems.append(
            f"model.language.max_position_embeddings={chosen.language.max_position_embeddings}, but the model has "
            f"{source.language.max_position_embeddings}"
        )
    if problems:
        raise ValueError("overrides contradict the imported model: " + "; ".join(problems))


def _check_vocabulary(config: RunConfig, rows: int, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    size = config.model.language.vocab_size
    if size < rows:
        raise ValueError(f"model.language.vocab_size={size} would cut off rows: the model's embedding has {rows}")
    if len(tokenizer) > size:
        raise ValueError(
            f"tokenizer {folder} has {len(tokenizer)} tokens, but the embedding has {rows} rows and grows by at most "
            f"{_NEW_TOKENS}, for image and pad; is it another model's? If not, override "
            f"model.language.vocab_size={len(tokenizer)}"
        )
