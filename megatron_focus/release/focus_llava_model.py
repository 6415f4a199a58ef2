"""FocusLLaVA without its output layer: from input ids and tiles to the states of the tokens that are left.

Shapes: B rows, L input tokens of a row (the processor's placeholders counted), K tokens of a row behind the last layer,
C hidden size, I images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextModel, LlavaNextPreTrainedModel
from transformers.models.llava_next.modeling_llava_next import LlavaNextModelOutputWithPast
from transformers.utils import can_return_tuple

from .configuration_focus_llava import FocusLlavaConfig
from .focus_cache import FocusCache
from .focused_decoder import Decoded, decode, gather_states
from .heuristic_sampling import heuristic_tokens
from .image_geometry import ImageGrid, image_grid, tiles_of_images
from .sampler_settings import SamplerSettings, changed_settings, trained_settings
from .selection import ImageSelection, image_selections
from .text_sampling import instruction_mask
from .token_sequence import TokenSequence, image_rows, place_visual_tokens
from .vision_sampling import VisionSampler, VisualTokens, baseline_tokens


@dataclass
class FocusLlavaModelOutputWithPast(LlavaNextModelOutputWithPast):
    """``last_hidden_state`` is [B, K, C], padded on the left; ``hidden_states`` get shorter at the drop."""

    input_positions: Tensor | None = None
    """int64 [B, K], index in the input ids of the token each state belongs to; -1 for padding."""
    selection: list[ImageSelection] | None = None
    """One for each image, with ``output_selection=True``."""


@dataclass
class _Images:
    """The images of one pass."""

    grids: list[ImageGrid]
    sizes: list[tuple[int, int]]
    """Height and width in pixels."""
    rows: list[list[int]]
    """Images of each row of the batch."""
    visual: VisualTokens


class FocusLlavaPreTrainedModel(LlavaNextPreTrainedModel):
    """What the two models share."""

    config: FocusLlavaConfig
    _supports_flex_attn = False
    # Backends of others' making get no mask of the padding.
    _supports_attention_backend = False
    # Lengths depend on what the image shows.
    _can_compile_fullgraph = False


class FocusLlavaModel(FocusLlavaPreTrainedModel, LlavaNextModel):
    """Everything but the output layer."""

    def __init__(self, config: FocusLlavaConfig):
        super().__init__(config)
        self.samplers: SamplerSettings = trained_settings(config)
        """How the next prompt is sampled; :meth:`set_samplers` changes it."""
        if config.vision_sampler["enabled"] and config.vision_sampler["method"] == "learned":
            self.vision_sampler = VisionSampler(config.vision_sampler, config.cells_per_side)
            self.post_init()

    def set_samplers(
        self,
        *,
        gamma: float | None = None,
        text_layer: int | None = None,
        scales: Sequence[str] | None = None,
        vision: bool | None = None,
        text: bool | None = None,
    ) -> SamplerSettings:
        """Set the samplers for what follows; what is not given stays. Saving the model saves the trained settings.

        A cache keeps what its first pass dropped. Settings of a sampler that is off count when it is on again.

        Args:
            gamma: share of the importance that the kept tokens exceed; 1 or more keeps all.
            text_layer: tokens are dropped before this layer, counted from 0.
            scales: those that a window may choose, some of the trained ones.
            vision: whether windows choose a scale; without it images have LLaVA-NeXT's tokens.
            text: whether tokens are dropped inside the language model.

        Returns:
            The settings from now on.

        Raises:
            ValueError: naming the argument and its value, if the model cannot be set so; then nothing changes.
        """
        self.samplers = changed_settings(
            self.samplers,
            self.config,
            gamma=gamma,
            text_layer=text_layer,
            scales=scales,
            vision=vision,
            text=text,
        )
        return self.samplers

    def image_grids(self, image_sizes: Tensor) -> list[ImageGrid]:
        """The grid of each image, from sizes [I, 2] (height, width in pixels)."""
        tile, cells = self.config.vision_config.image_size, self.config.cells_per_side
        return [image_grid((h, w), self.config.image_grid_pinpoints, tile, cells) for h, w in image_sizes.tolist()]

    def sample_images(self, features: Tensor, grids: list[ImageGrid]) -> VisualTokens:
        """The visual tokens of images whose projected tiles are ``features`` [tiles, cells, C].

        Raises:
            ValueError: an image is left without a token, or the newline's embedding is offloaded; accelerate would load
                it only for layers, not for this.
        """
        self._check_crops(grids)
        if self.image_newline.is_meta:
            raise ValueError("model.image_newline cannot be offloaded; give it a device in device_map")
        newline = self.image_newline.to(features.device)
        if self.samplers.vision and self.config.vision_sampler["method"] == "heuristic":
            return heuristic_tokens(features, newline, grids, self.config.vision_sampler)
        if self.samplers.vision:
            return self.vision_sampler(features, newline, grids, self.samplers.scales)
        return baseline_tokens(features, newline, grids)

    def _check_crops(self, grids: list[ImageGrid]) -> None:
        if not self.samplers.vision or self.config.vision_sampler["global_view"] != "drop":
            return
        for number, grid in enumerate(grids):
            top, bottom, left, right = grid.crop
            if top >= bottom or left >= right:
                raise ValueError(
                    f"image {number} has no visual token under vision_sampler.global_view='drop': it is too elongated "
                    "for the cells of its tiles; crop it, or ask with set_samplers(vision=False)"
                )

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

    def _images(
        self, input_ids: Tensor | None, pixel_values: Tensor | None, image_sizes: Tensor | None
    ) -> _Images | None:
        """The images that belong to the placeholders of a prompt, sampled; None where it has none.

        Raises:
            ValueError: if images, sizes and placeholders do not fit each other.
        """
        if pixel_values is None or not len(pixel_values):
            if input_ids is not None and bool((input_ids == self.config.image_token_id).any()):
                raise ValueError("input_ids have image placeholders, but there are no pixel_values")
            return None
        if input_ids is None or image_sizes is None:
            raise ValueError("pixel_values need input_ids and image_sizes")
        grids = self.image_grids(image_sizes)
        rows = image_rows((input_ids == self.config.image_token_id).sum(1), grids)
        sizes = [(height, width) for height, width in image_sizes.tolist()]
        return _Images(grids, sizes, rows, self.encode_images(pixel_values, grids))

    def _prompt(
        self,
        input_ids: Tensor | None,
        embeddings: Tensor,
        valid: Tensor,
        images: _Images | None,
    ) -> tuple[Tensor, TokenSequence]:
        """What the first layer reads: no padding and no left-over placeholders but what the longest row requires."""
        place = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
        sequence = TokenSequence(valid, place, place, torch.full_like(place, -1), torch.zeros_like(valid))
        keep = valid
        if images is not None:
            assert input_ids is not None
            visual = images.visual
            is_image = input_ids == self.config.image_token_id
            held = place_visual_tokens(is_image, images.grids, visual)
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
            output_selection: whether to return what the samplers did; later passes of a cache return what its first
                did, which must have been asked too.
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
        input_ids = None if input_ids is None else input_ids.to(device)
        if attention_mask is None:
            attention_mask = torch.ones(shape, device=device)
        valid = attention_mask[:, -shape[1] :].to(device, torch.bool)
        cache = self._cache(past_key_values, use_cache)

        images: _Images | None = None
        continues = cache is not None and cache.get_seq_length() > 0
        if cache is not None and continues:
            # A single token is the model's own; to look at each of them would cost a transfer a step.
            if input_ids is not None and shape[1] > 1 and bool((input_ids == self.config.image_token_id).any()):
                raise ValueError("images can only be given with the first tokens of a cache; start with a new cache")
            if output_selection and cache.selection is None:
                raise ValueError(
                    "output_selection must be asked for in the first pass of a cache, as it reads the images"
                )
            hidden_states, sequence = inputs_embeds, cache.continuation(valid)
            drop_layer = cache.drop_layer
        else:
            images = self._images(input_ids, pixel_values, image_sizes)
            hidden_states, sequence = self._prompt(input_ids, inputs_embeds, valid, images)
            drop_layer = self.samplers.drop_layer

        decoded = decode(
            self.language_model,
            hidden_states,
            sequence,
            None if images is None else images.visual,
            cache,
            drop_layer,
            self.samplers.gamma,
            output_hidden_states=bool(output_hidden_states),
            **kwargs,
        )
        selection = None
        if output_selection:
            selection = cache.selection if cache is not None and continues else self._selection(images, decoded)
        if cache is not None:
            cache.input_length += shape[1]
            if not continues:
                cache.drop_layer, cache.selection = drop_layer, selection
        return FocusLlavaModelOutputWithPast(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=cache,
            hidden_states=decoded.hidden_states,
            image_hidden_states=None if images is None else images.visual.tokens,
            input_positions=decoded.sequence.input_position,
            selection=selection,
        )

    def _selection(self, images: _Images | None, decoded: Decoded) -> list[ImageSelection]:
        """What the samplers did in the pass that ends."""
        if images is None:
            return []
        return image_selections(
            images.visual,
            images.grids,
            images.sizes,
            images.rows,
            scales=self.config.vision_sampler["scales"] if self.samplers.vision else ["1x1"],
            importance=decoded.importance,
            tokens_left=decoded.sequence.visual,
            drop_layer=self.samplers.drop_layer,
        )


FocusLlavaModel.register_for_auto_class("AutoModel")
