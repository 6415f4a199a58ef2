"""What ``generate`` must do otherwise for a model that compacts its input."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from .focus_cache import FocusCache
from .image_geometry import tiles_of_images
from .token_sequence import image_rows


class FocusGenerationMixin:
    """Stands before transformers' ``GenerationMixin`` among the bases of the model."""

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        output_selection: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Continue the input; see transformers' ``generate``.

        A cache of an earlier turn (``past_key_values``) holds in its later layers the tokens that the turns until then
        asked for. A fresh prompt with the whole conversation selects for all of its turns, as in training.

        Args:
            inputs: the prompt, as in transformers.
            generation_config: as in transformers.
            *args: as in transformers.
            output_selection: with ``return_dict_in_generate=True``, whether the result has ``selection``, what the
                samplers did to each image (once, however many beams or samples a row has).
            **kwargs: as in transformers.

        Raises:
            ValueError: for what cannot work with caches whose layers hold different tokens: static, quantized and
                offloaded caches, assisted generation and prompt lookup; for ``output_selection`` without a cache or
                without ``return_dict_in_generate``.
        """
        if not output_selection:
            return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]
        defaults = generation_config or self.generation_config  # type: ignore[attr-defined]
        settings = {
            name: kwargs.get(name, getattr(defaults, name)) for name in ("return_dict_in_generate", "use_cache")
        }
        if not settings["return_dict_in_generate"] or settings["use_cache"] is False:
            raise ValueError("output_selection=True needs return_dict_in_generate=True and the cache (use_cache)")
        kwargs["output_selection"] = True
        output = super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]
        cache: FocusCache = output.past_key_values
        prompts = next(t for t in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if t is not None)
        copies = cache.num_rows // len(prompts)
        output["selection"] = [replace(s, row=s.row // copies) for s in cache.selection or [] if s.row % copies == 0]
        return output

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> None:
        """Refuse.

        Raises:
            ValueError: always: blocks of a paged cache hold the same tokens for all layers.
        """
        raise ValueError(
            "continuous batching (generate_batch) is not supported: its paged cache holds the same tokens for all "
            "layers; use generate"
        )

    # Refuses assisted generation, which would have to take tokens back.
    _is_stateful = True

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Generate with a :class:`FocusCache`.

        Raises:
            ValueError: for another kind of cache.
        """
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation {generation_config.cache_implementation!r} is not supported: the layers hold "
                "different numbers of tokens, for which there is only the FocusCache (the default)"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = FocusCache(config=self.config.text_config)  # type: ignore[attr-defined]

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat each row for beams or samples, and the images of each row with it.

        The stock method repeats image by image, which pairs a row of several images with the wrong ones.
        """
        pixel_values, image_sizes = model_kwargs.pop("pixel_values", None), model_kwargs.pop("image_sizes", None)
        input_is_given = input_ids is not None and pixel_values is not None and image_sizes is not None
        if expand_size > 1 and input_is_given:
            grids = self.model.image_grids(image_sizes)  # type: ignore[attr-defined]
            is_image = input_ids == self.config.image_token_id  # type: ignore[attr-defined]
            order = [i for images in image_rows(is_image.sum(1), grids) for i in images * expand_size]
            tiles = tiles_of_images(pixel_values, grids)
            pixel_values, image_sizes = torch.cat([tiles[i] for i in order]), image_sizes[order]
        input_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        images = {"pixel_values": pixel_values, "image_sizes": image_sizes}
        return input_ids, model_kwargs | {name: tensor for name, tensor in images.items() if tensor is not None}
