"""How the two samplers of a loaded model are set; the configuration says how they were trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .configuration_focus_llava import FocusLlavaConfig


@dataclass(frozen=True)
class SamplerSettings:
    """What the next prompt is sampled with."""

    vision: bool
    """Whether windows choose a scale; without it images have LLaVA-NeXT's tokens."""
    scales: tuple[str, ...]
    """Scales that a window may choose, a part of the trained ones, in their order."""
    text: bool
    """Whether tokens are dropped inside the language model."""
    text_layer: int
    """Tokens are dropped before this layer, counted from 0."""
    gamma: float
    """Share of the importance that the kept tokens exceed; 1 or more keeps all."""

    @property
    def drop_layer(self) -> int | None:
        """The layer before which tokens are dropped; None where none are."""
        return self.text_layer if self.text else None


def trained_settings(config: FocusLlavaConfig) -> SamplerSettings:
    """The samplers as the configuration has them."""
    vision, text = config.vision_sampler, config.text_sampler
    return SamplerSettings(
        vision=vision["enabled"],
        scales=tuple(vision["scales"]),
        text=text["enabled"],
        text_layer=text["layer"],
        gamma=text["gamma"],
    )


def changed_settings(
    present: SamplerSettings,
    config: FocusLlavaConfig,
    *,
    gamma: float | None,
    text_layer: int | None,
    scales: Sequence[str] | None,
    vision: bool | None,
    text: bool | None,
) -> SamplerSettings:
    """``present`` with what is not None replaced; see ``set_samplers`` of the model.

    Raises:
        ValueError: naming the argument and its value, if the model cannot be set so.
    """
    for name, value in (("vision", vision), ("text", text)):
        if not (value is None or isinstance(value, bool)):
            raise ValueError(f"{name} is {value!r}; it must be True or False")
    settings = replace(
        present,
        vision=present.vision if vision is None else vision,
        scales=present.scales if scales is None else _part_of(scales, config),
        text=present.text if text is None else text,
        text_layer=present.text_layer if text_layer is None else text_layer,
        gamma=present.gamma if gamma is None else gamma,
    )
    if settings.vision and not config.vision_sampler["enabled"]:
        raise ValueError("vision is True, but the model was trained without a vision-guided sampler: it has no weights")
    if settings.text:
        _check_text(settings, config)
    elif gamma is not None or text_layer is not None:
        _check_numbers(settings, config)
    return settings


def _part_of(scales: Sequence[str], config: FocusLlavaConfig) -> tuple[str, ...]:
    """The scales in the order in which they were trained.

    Raises:
        ValueError: if they are not some of the trained ones.
    """
    if not config.vision_sampler["enabled"]:
        raise ValueError(f"scales is {scales!r}, but the model was trained without a vision-guided sampler")
    if config.vision_sampler["method"] == "heuristic":
        raise ValueError(
            f"scales is {scales!r}, but this model's sampler is heuristic: it keeps single cells and chooses no scale"
        )
    trained = config.vision_sampler["scales"]
    if isinstance(scales, str) or not scales or not set(scales) <= set(trained):
        raise ValueError(f"scales is {scales!r}; it must be a list of at least one of the trained scales {trained}")
    return tuple(scale for scale in trained if scale in scales)


def _check_text(settings: SamplerSettings, config: FocusLlavaConfig) -> None:
    """Whether the text-guided sampler can work.

    Raises:
        ValueError: if it cannot.
    """
    if not config.instruction_start_token_ids:
        raise ValueError(
            "text is True, but the configuration has no instruction_start_token_ids, so no token would be taken for "
            "the user's and nothing would be dropped"
        )
    _check_numbers(settings, config)


def _check_numbers(settings: SamplerSettings, config: FocusLlavaConfig) -> None:
    """Whether layer and share are in their ranges.

    Raises:
        ValueError: if one is not.
    """
    layer, gamma, layers = settings.text_layer, settings.gamma, config.text_config.num_hidden_layers
    if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer < layers:
        raise ValueError(f"text_layer is {layer!r}; it must be one of the {layers} layers, counted from 0")
    if not isinstance(gamma, int | float) or isinstance(gamma, bool) or not gamma > 0:
        raise ValueError(f"gamma is {gamma!r}; it must be a number above 0")
