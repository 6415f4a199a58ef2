"""Tokenizer and image processor of a release."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlavaNextProcessor, PreTrainedTokenizerBase
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from data_pipeline.anyres import hf_grid_pinpoints
from megatron_focus.conversion.model_facts import ModelFacts


def release_processor(tokenizer_folder: Path, facts: ModelFacts) -> LlavaNextProcessor:
    """LLaVA-NeXT's own processor for the model's tiles, with the tokenizer that the model was trained with.

    The tokenizer pads on the left, as generation needs it, and has the chat template of the training.

    Raises:
        ValueError: its ids are not those of the model.
    """
    tokenizer, tile = _tokenizer(tokenizer_folder, facts), facts.image.tile_size
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": tile},
        crop_size={"height": tile, "width": tile},
        image_grid_pinpoints=hf_grid_pinpoints(facts.image),
    )
    return LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=facts.image.patch_size,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,  # the class token, which the strategy takes off again
    )


def _tokenizer(folder: Path, facts: ModelFacts) -> PreTrainedTokenizerBase:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if len(tokenizer) > facts.text.vocab_size:
        raise ValueError(f"tokenizer {folder} has {len(tokenizer)} ids, the model only {facts.text.vocab_size}")
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    if image_id != facts.tokens.image_token_id:
        raise ValueError(f"tokenizer {folder} has id {image_id} for <image>, the model {facts.tokens.image_token_id}")
    if tokenizer.pad_token_id != facts.tokens.pad_token_id:
        raise ValueError(
            f"tokenizer {folder} pads with {tokenizer.pad_token_id}, the model {facts.tokens.pad_token_id}"
        )
    tokenizer.chat_template = facts.tokens.chat_template
    text = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    if tokenizer.bos_token is not None and not text.startswith(tokenizer.bos_token):
        # Training adds nothing to what the template writes; transformers' processor lets the tokenizer put its first
        # token in front of a conversation that does not begin with it.
        tokenizer.add_bos_token = False
    return tokenizer
