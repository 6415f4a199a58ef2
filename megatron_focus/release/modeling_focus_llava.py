"""FocusLLaVA for transformers: LLaVA-NeXT with a vision-guided and a text-guided sampler of visual tokens.

Vision tower, projector, vision sampler, the shorter sequence, layers before the drop, text sampler, layers behind it.
Parameters are LLaVA-NeXT's and ``model.vision_sampler.selector``. Shapes: B rows, L input tokens of a row (the
processor's placeholders counted), K tokens of a row behind the last layer, C hidden size, V vocabulary, I images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration, LlavaNextPreTrainedModel
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llava_next.modeling_llava_next import LlavaNextCausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .configuration_focus_llava import FocusLlavaConfig
from .focus_cache import FocusCache
from .focus_generation import FocusGenerationMixin
from .focus_llava_model import FocusLlavaModel, FocusLlavaPreTrainedModel
from .sampler_settings import SamplerSettings
from .selection import ImageSelection

IGNORE_INDEX = -100


@dataclass
class FocusLlavaCausalLMOutputWithPast(LlavaNextCausalLMOutputWithPast):
    """``logits`` are [B, K, V], padded on the left, fewer with ``logits_to_keep``."""

    input_positions: Tensor | None = None
    """int64, for each row of logits: index in the input ids of its token; -1 for padding."""
    selection: list[ImageSelection] | None = None
    """One for each image, with ``output_selection=True``."""


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

    @property
    def samplers(self) -> SamplerSettings:
        """How the next prompt is sampled."""
        return self.model.samplers

    def set_samplers(
        self,
        *,
        gamma: float | None = None,
        text_layer: int | None = None,
        scales: Sequence[str] | None = None,
        vision: bool | None = None,
        text: bool | None = None,
    ) -> SamplerSettings:
        """Set the samplers for what follows; see :meth:`FocusLlavaModel.set_samplers`."""
        return self.model.set_samplers(gamma=gamma, text_layer=text_layer, scales=scales, vision=vision, text=text)

    # transformers reads the names of the inputs in this signature, so they stand here once more.
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
        logits_to_keep: int | Tensor = 0,
        output_selection: bool = False,
        **kwargs: Any,
    ) -> FocusLlavaCausalLMOutputWithPast:
        """Run the model and its output layer.

        The logits are those of the tokens that reach the last layer, so there are fewer than input tokens;
        ``input_positions`` says where in the input each row's token stands. Without samplers and padding they are
        LLaVA-NeXT's.

        Args:
            input_ids: this and all that is not listed as in :meth:`FocusLlavaModel.forward`.
            pixel_values: as there.
            image_sizes: as there.
            attention_mask: as there.
            past_key_values: as there.
            inputs_embeds: as there.
            labels: [B, L], in the input's places as for LLaVA-NeXT: not shifted, -100 where there is none.
            logits_to_keep: as in transformers, but counted in the tokens that reach the last layer.
            output_selection: as there.
            **kwargs: to the loss ``num_items_in_batch``, all others to the model.

        Raises:
            ValueError: for inputs that contradict each other or that this model does not support.
        """
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise ValueError("labels need the logits of all tokens; leave logits_to_keep at 0")
        loss_arguments = {k: kwargs.pop(k) for k in ("num_items_in_batch",) if k in kwargs}
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            output_selection=output_selection,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            positions = outputs.input_positions
            kept_labels = _labels_at(labels.to(positions.device), positions).to(logits.device)
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


FocusLlavaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
