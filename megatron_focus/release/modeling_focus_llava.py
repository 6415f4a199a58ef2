"""FocusLLaVA for transformers: LLaVA-NeXT with a vision-guided and a text-guided sampler of visual tokens.

Vision tower, projector, vision sampler, the shorter sequence, layers before the drop, text sampler, layers behind it.
Parameters are LLaVA-NeXT's and ``model.vision_sampler.selector``. Shapes: B rows, L input tokens of a row (the
processor's placeholders counted), K tokens of a row behind the last layer, C hidden size, V vocabulary, I images.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration, LlavaNextModel, LlavaNextPreTrainedModel
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextCausalLMOutputWithPast,
    LlavaNextModelOutputWithPast,
)
from transformers.utils import can_return_tuple

from .configuration_focus_llava import FocusLlavaConfig
from .focus_cache import FocusCache
from .focus_generation import FocusGenerationMixin
from .focused_decoder import decode, gather_states
from .image_geometry import ImageGrid, image_grid, tiles_of_images
from .selection import ImageSelection, image_selections
from .text_sampling import instruction_mask
from .token_sequence import TokenSequence, place_visual_tokens
from .vision_sampling import VisionSampler, VisualTokens, baseline_tokens

IGNORE_INDEX = -100


@dataclass
class FocusLlavaModelOutputWithPast(LlavaNextModelOutputWithPast):
    """``last_hidden_state`` is [B, K, C], padded on the left; ``hidden_states`` get shorter at the drop."""

    input_positions: Tensor | None = None
    """int64 [B, K], index in the input ids of the token each state belongs to; -1 for padding."""
    selection: list[ImageSelection] | None = None
    """One for each image, with ``output_selection=True``."""


@dataclass
class FocusLlavaCausalLMOutputWithPast(LlavaNextCausalLMOutputWithPast):
    """``logits`` are [B, K, V], padded on the left, fewer with ``logits_to_keep``."""

    input_positions: Tensor | None = None
    """int64, for each row of logits: index in the input ids of its token; -1 for padding."""
    selection: list[ImageSelection] | None = None
    """One for each image, with ``output_selection=True``."""


class FocusLlavaPreTrainedModel(LlavaNextPreTrainedModel):
    """What the two models share."""

    config: FocusLlavaConfig
    _supports_flash_attn = False
    _supports_flex_attn = False
    # Lengths depend on what the image shows.
    _can_compile_fullgraph = False


class FocusLlavaModel(FocusLlavaPreTrainedModel, LlavaNextModel):
    """Everything but the output layer."""

    def __init__(self, config: FocusLlavaConfig):
        super().__init__(config)
        if config.vision_sampler["enabled"]:
            self.vision_sampler = VisionSampler(config.vision_sampler, config.cells_per_side)
            self.post_init()

    def image_grids(self, image_sizes: Tensor) -> list[ImageGrid]:
        """The grid of each image, from sizes [I, 2] (height, width in pixels)."""
        tile, cells = self.config.vision_config.image_size, self.config.cells_per_side
        return [image_grid((h, w), self.config.image_grid_pinpoints, tile, cells) for h, w in image_sizes.tolist()]

    def sample_images(self, features: Tensor, grids: list[ImageGrid]) -> VisualTokens:
        """The visual tokens of images whose projected tiles are ``features`` [tiles, cells, C]."""
        if self.config.vision_sampler["enabled"]:
            return self.vision_sampler(features, self.image_newline, grids)
        return baseline_tokens(features, self.image_newline, grids)

    def pack_image_features(
        self,
        image_features: tuple[Tensor, ...],
        image_sizes: Tensor,
        vision_feature_select_strategy: str,
        image_newline: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Tokens of each image and their counts; the step of ``get_image_features`` that differs from LLaVA-NeXT."""
        visual = self.sample_images(torch.cat(image_features), self.image_grids(image_sizes))
        return list(visual.tokens.split(visual.counts.tolist())), visual.counts

    def encode_images(self, pixel_values: Tensor, grids: list[ImageGrid]) -> VisualTokens:
        """Vision tower, projector and vision sampler.

        Args:
            pixel_values: [I, most tiles, 3, P, P] as the processor pads them, or [tiles, 3, P, P] of all images.
            grids: the grid of each image.

        Raises:
            ValueError: if there are not as many tiles as the image sizes say.
        """
        tiles = torch.cat(tiles_of_images(pixel_values, grids))
        states = self.vision_tower(tiles, output_hidden_states=True).hidden_states
        features = self.multi_modal_projector(states[self.config.vision_feature_layer][:, 1:])  # no class token
        return self.sample_images(features, grids)

    def _prompt(
        self,
        input_ids: Tensor | None,
        embeddings: Tensor,
        valid: Tensor,
        grids: list[ImageGrid],
        visual: VisualTokens | None,
    ) -> tuple[Tensor, TokenSequence]:
        """What the first layer reads: no padding and no left-over placeholders but what the longest row requires."""
        place = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
        sequence = TokenSequence(valid, place, place, torch.full_like(place, -1), torch.zeros_like(valid))
        keep = valid
        if visual is not None:
            assert input_ids is not None
            is_image = input_ids == self.config.image_token_id
            held = place_visual_tokens(is_image, grids, visual)
            tokens = visual.tokens.to(embeddings.device, embeddings.dtype)
            embeddings = embeddings.masked_scatter((held >= 0)[..., None], tokens)
            start, end = self.config.instruction_start_token_ids, self.config.instruction_end_token_ids
            sequence.visual, sequence.is_instruction = held, instruction_mask(input_ids, is_image, start, end)
            keep = keep & (~is_image | (held >= 0))
        sequence, origin = sequence.select(keep)
        sequence.position = (sequence.valid.cumsum(1) - 1).clamp(min=0)
        return gather_states(embeddings, origin), sequence

    def _cache(self, given: FocusCache | None, use_cache: bool | None) -> FocusCache | None:
        """The cache to write to."""
        if given is not None and not isinstance(given, FocusCache):
            raise ValueError(f"past_key_values is a {type(given).__name__}; this model needs a FocusCache")
        if use_cache is None:
            use_cache = self.config.text_config.use_cache and not self.training
        return FocusCache(config=self.config.text_config) if given is None and use_cache else given

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: FocusCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_selection: bool = False,
        **kwargs: Any,
    ) -> FocusLlavaModelOutputWithPast:
        """Run the model.

        Positions are counted here, because the samplers decide how long the sequence is. Images belong to the first
        pass of a cache; a later pass that is given them again, as by ``generate`` with a longer conversation, does not
        read them a second time.

        Args:
            input_ids: [B, L], with the processor's placeholders.
            pixel_values: see :meth:`encode_images`.
            image_sizes: [I, 2], height and width of the original images in pixels.
            attention_mask: [B, L], or [B, all input tokens so far]; 0 for padding.
            past_key_values: the cache of an earlier pass.
            inputs_embeds: [B, L, C], instead of ``input_ids`` where there is no image.
            use_cache: whether to return a cache; by default as the text model is set, never in training.
            output_hidden_states: whether to return the states between the layers.
            output_selection: whether to return what the samplers did.
            **kwargs: passed to the decoder layers.

        Raises:
            ValueError: for inputs that contradict each other or that this model does not support.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if kwargs.pop("position_ids", None) is not None:
            raise ValueError("position_ids cannot be given: the samplers decide how long the sequence is")
        if kwargs.pop("output_attentions", False):
            raise ValueError("output_attentions is not supported; output_selection=True returns what the samplers did")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        shape, device = inputs_embeds.shape[:2], inputs_embeds.device
        if attention_mask is None:
            attention_mask = torch.ones(shape, device=device)
        valid = attention_mask[:, -shape[1] :].to(device, torch.bool)
        cache = self._cache(past_key_values, use_cache)

        visual, grids = None, []
        if cache is not None and cache.get_seq_length():
            if pixel_values is not None and bool((input_ids == self.config.image_token_id).any()):
                raise ValueError("images can only be given with the first tokens of a cache; start with a new cache")
            hidden_states, sequence = inputs_embeds, cache.continuation(valid)
        else:
            if pixel_values is not None and len(pixel_values):
                if input_ids is None or image_sizes is None:
                    raise ValueError("pixel_values need input_ids and image_sizes")
                grids = self.image_grids(image_sizes)
                visual = self.encode_images(pixel_values, grids)
            hidden_states, sequence = self._prompt(input_ids, inputs_embeds, valid, grids, visual)

        sampler = self.config.text_sampler
        decoded = decode(
            self.language_model,
            hidden_states,
            sequence,
            visual,
            cache,
            drop_layer=sampler["layer"] if sampler["enabled"] else None,
            gamma=sampler["gamma"],
            output_hidden_states=bool(output_hidden_states),
            **kwargs,
        )
        if cache is not None:
            cache.input_length += shape[1]
        selection = None
        if output_selection and visual is not None:
            names, window = self._sampled_scales()
            selection = image_selections(visual, grids, names, window, decoded.importance, decoded.sequence.visual)
        return FocusLlavaModelOutputWithPast(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=cache,
            hidden_states=decoded.hidden_states,
            image_hidden_states=None if visual is None else visual.tokens,
            input_positions=decoded.sequence.input_position,
            selection=selection,
        )

    def _sampled_scales(self) -> tuple[list[str], int]:
        """Scales and window of the vision sampler; without it every cell is a window of its own."""
        sampler = self.config.vision_sampler
        return (sampler["scales"], sampler["window"]) if sampler["enabled"] else (["1x1"], 1)


class FocusLlavaForConditionalGeneration(  # type: ignore[misc]
    FocusGenerationMixin, FocusLlavaPreTrainedModel, LlavaNextForConditionalGeneration
):
    """The model with its output layer, and ``generate``."""

    def __init__(self, config: FocusLlavaConfig):
        # LlavaNextForConditionalGeneration would build a second, unsampled model first.
        LlavaNextPreTrainedModel.__init__(self, config)
        self.model = FocusLlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: FocusCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_selection: bool = False,
        **kwargs: Any,
    ) -> FocusLlavaCausalLMOutputWithPast:
        """Run the model and its output layer; see :meth:`FocusLlavaModel.forward` for what is not listed.

        The logits are those of the tokens that reach the last layer, so there are fewer than input tokens;
        ``input_positions`` says where in the input each row's token stands. Without samplers and padding they are
        LLaVA-NeXT's.

        Args:
            input_ids: [B, L], with the processor's placeholders.
            pixel_values: images, tile by tile.
            image_sizes: [I, 2].
            attention_mask: [B, L].
            past_key_values: the cache of an earlier pass.
            inputs_embeds: [B, L, C].
            labels: [B, L], in the input's places as for LLaVA-NeXT: not shifted, -100 where there is none.
            use_cache: whether to return a cache.
            logits_to_keep: as in transformers, but counted in the tokens that reach the last layer.
            output_hidden_states: whether to return the states between the layers.
            output_selection: whether to return what the samplers did.
            **kwargs: passed to the loss and to the decoder layers.

        Raises:
            ValueError: for inputs that contradict each other or that this model does not support.
        """
        loss_arguments = {k: kwargs.pop(k) for k in ("num_items_in_batch",) if k in kwargs}
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_selection=output_selection,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            if not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
                raise ValueError("labels need the logits of all tokens; leave logits_to_keep at 0")
            kept_labels = _labels_at(labels.to(logits.device), outputs.input_positions)
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=kept_labels, vocab_size=vocab_size, **loss_arguments)
        return FocusLlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            image_hidden_states=outputs.image_hidden_states,
            input_positions=slice_logits_to_keep(outputs.input_positions[..., None], logits_to_keep)[..., 0],
            selection=outputs.selection,
        )


def _labels_at(labels: Tensor, input_positions: Tensor) -> Tensor:
    """Labels [B, K] of the tokens that are left.

    Raises:
        ValueError: if a token that was dropped, or padding, has a label.
    """
    left = labels.gather(1, input_positions.clamp(min=0)).masked_fill(input_positions < 0, IGNORE_INDEX)
    lost = int((labels != IGNORE_INDEX).sum() - (left != IGNORE_INDEX).sum())
    if lost:
        raise ValueError(f"{lost} labels stand at image placeholders or padding; they must be {IGNORE_INDEX}")
    # Nothing predicts a row's first token; on the left of it may be padding, which must not try.
    is_first = (input_positions >= 0).cumsum(1) == 1
    return left.masked_fill(is_first, IGNORE_INDEX)


FocusLlavaModel.register_for_auto_class("AutoModel")
FocusLlavaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
