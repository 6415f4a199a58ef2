"""Configuration of FocusLLaVA: LLaVA-NeXT's, and the settings of the two samplers."""

from typing import Any

import transformers

OLDEST_TRANSFORMERS = (5, 21)
"""Oldest version that the project's requirements name; newer ones than those are not refused."""

# This file is loaded first. With an older version one of the others fails, or computes something else.
if tuple(map(int, transformers.__version__.split(".")[:2])) < OLDEST_TRANSFORMERS:
    raise ImportError(
        f"this FocusLLaVA model needs transformers {'.'.join(map(str, OLDEST_TRANSFORMERS))} or newer; "
        f"{transformers.__version__} is installed"
    )

from transformers import LlavaNextConfig  # noqa: E402

TEXT_MODEL_TYPES = ("llama", "qwen2", "mistral")

VISION_SAMPLER_DEFAULTS: dict[str, Any] = {
    "enabled": True,
    "method": "learned",
    "heuristic_keep": None,
    "window": 4,
    "scales": ["1x1", "2x2", "4x4"],
    "score_pooling": "max",
    "score_scale": None,
    "center_scores": False,
    "gate": "paper",
    "global_view": "compress",
}
TEXT_SAMPLER_DEFAULTS: dict[str, Any] = {"enabled": True, "layer": 8, "gamma": 0.85}

CHOICES = {
    "method": ("learned", "heuristic"),
    "score_pooling": ("max", "mean"),
    "gate": ("paper", "ste", "switch"),
    "global_view": ("compress", "keep", "drop"),
}

Kernel = tuple[int, int] | None


def scale_kernel(scale: str) -> Kernel:
    """Rows and columns of the pooling kernel a scale is named by; None for ``discard``.

    Raises:
        ValueError: for a name that is neither.
    """
    if scale == "discard":
        return None
    rows, _, columns = scale.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise ValueError(f"scale {scale!r} is neither 'discard' nor a kernel such as '2x2' (rows x columns)")
    return int(rows), int(columns)


def scale_tokens(scale: str, window: int) -> int:
    """Tokens that a window of ``window`` x ``window`` valid cells becomes at a scale."""
    kernel = scale_kernel(scale)
    return 0 if kernel is None else window * window // (kernel[0] * kernel[1])


def _with_defaults(name: str, given: dict[str, Any] | None, defaults: dict[str, Any]) -> dict[str, Any]:
    """The given settings over the defaults; unknown keys are errors."""
    given = given or {}
    if unknown := sorted(set(given) - set(defaults)):
        raise ValueError(f"{name} has unknown keys {unknown}; it knows {sorted(defaults)}")
    return {**defaults, **given}


class FocusLlavaConfig(LlavaNextConfig):
    """LLaVA-NeXT's configuration with the samplers' settings.

    Args:
        vision_sampler: ``enabled``; ``method`` learned | heuristic, where ``heuristic_keep`` is the share of the cells
            that stay and the only scale is 1x1; ``window``, side in cells, divides the cells of a tile side;
            ``scales``, pooling kernels "rows x columns" (or "discard") that divide the window, finest first;
            ``score_pooling`` max | mean; ``score_scale``, factor of the scores, 1 / sqrt(C) for None;
            ``center_scores``, whether each score loses its mean over the windows of the image; ``gate`` paper | ste |
            switch; ``global_view`` compress | keep | drop.
        text_sampler: ``enabled``; ``layer``, tokens are dropped before this layer, counted from 0; ``gamma``, share of
            the total importance that the kept tokens exceed, 1 or more keeps all.
        instruction_start_token_ids: the markers after which the content of a user turn begins, each a list of ids; the
            longest that fits counts.
        instruction_end_token_ids: the markers that end a turn, each a list of ids.

    Raises:
        ValueError: naming the key and the value that do not fit.
    """

    model_type = "focus_llava"

    # None in the call unless given; afterwards the first two are configurations and the others are complete.
    vision_config: Any = None
    text_config: Any = None
    image_grid_pinpoints: Any = None
    vision_sampler: Any = None
    text_sampler: Any = None
    instruction_start_token_ids: Any = None
    instruction_end_token_ids: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.vision_sampler = _with_defaults("vision_sampler", self.vision_sampler, VISION_SAMPLER_DEFAULTS)
        self.text_sampler = _with_defaults("text_sampler", self.text_sampler, TEXT_SAMPLER_DEFAULTS)
        self.instruction_start_token_ids = self.instruction_start_token_ids or []
        self.instruction_end_token_ids = self.instruction_end_token_ids or []
        self._check_architecture()
        self._check_vision_sampler()
        self._check_text_sampler()

    @property
    def cells_per_side(self) -> int:
        """Cells (features) along one side of a tile."""
        return self.vision_config.image_size // self.vision_config.patch_size

    def _check_architecture(self) -> None:
        text = self.text_config
        if text.model_type not in TEXT_MODEL_TYPES:
            raise ValueError(
                f"text_config.model_type {text.model_type!r} is not supported; use one of {TEXT_MODEL_TYPES}"
            )
        if getattr(text, "sliding_window", None) is not None:
            raise ValueError(
                f"text_config.sliding_window is {text.sliding_window}; positions have gaps after tokens were dropped, "
                "so only full attention is supported: set it to null"
            )
        if self.vision_feature_select_strategy != "default":
            raise ValueError(
                f"vision_feature_select_strategy is {self.vision_feature_select_strategy!r}; "
                "only 'default' is supported"
            )
        if not isinstance(self.vision_feature_layer, int):
            raise ValueError(
                f"vision_feature_layer is {self.vision_feature_layer}; only one layer (an int) is supported"
            )
        for pinpoint in self.image_grid_pinpoints:
            if any(side % self.vision_config.image_size for side in pinpoint):
                raise ValueError(
                    f"image_grid_pinpoints has {pinpoint}, which is not a multiple of the tile side "
                    f"{self.vision_config.image_size}"
                )

    def _check_vision_sampler(self) -> None:
        settings, cells = self.vision_sampler, self.cells_per_side
        if not settings["enabled"]:
            return
        for key, choices in CHOICES.items():
            if settings[key] not in choices:
                raise ValueError(f"vision_sampler.{key} is {settings[key]!r}; choose one of {choices}")
        self._check_method(settings)
        scale, centred = settings["score_scale"], settings["center_scores"]
        if scale is not None and (not isinstance(scale, int | float) or isinstance(scale, bool) or not scale > 0):
            raise ValueError(f"vision_sampler.score_scale is {scale!r}; it must be a number above 0, or null")
        if not isinstance(centred, bool):
            raise ValueError(f"vision_sampler.center_scores is {centred!r}; it must be true or false")
        window, scales = settings["window"], settings["scales"]
        if not isinstance(window, int) or window < 1 or cells % window:
            raise ValueError(f"vision_sampler.window is {window!r}; it must divide the {cells} cells of a tile side")
        if not scales or len(set(scales)) < len(scales):
            raise ValueError(f"vision_sampler.scales is {scales}; it must name at least one scale, each once")
        for scale in scales:
            kernel = scale_kernel(scale)
            if kernel is not None and (window % kernel[0] or window % kernel[1]):
                raise ValueError(
                    f"vision_sampler.scales has {scale!r}, which does not divide the window of {window} cells"
                )
        tokens = [scale_tokens(scale, window) for scale in scales]
        if tokens != sorted(tokens, reverse=True):
            raise ValueError(
                f"vision_sampler.scales is {scales}; ties go to the first, so the finest scale stands first"
            )

    def _check_method(self, settings: dict[str, Any]) -> None:
        keep = settings["heuristic_keep"]
        if settings["method"] == "learned":
            if keep is not None:
                raise ValueError(f"vision_sampler.heuristic_keep is {keep!r}; it belongs to the method 'heuristic'")
            return
        if not isinstance(keep, int | float) or isinstance(keep, bool) or not 1e-6 <= keep <= 1:
            raise ValueError(f"vision_sampler.heuristic_keep is {keep!r}; it must be a share above 0, at most 1")
        if settings["scales"] != ["1x1"]:
            raise ValueError(f"vision_sampler.scales is {settings['scales']}; the method 'heuristic' has only ['1x1']")

    def _check_text_sampler(self) -> None:
        settings, layers = self.text_sampler, self.text_config.num_hidden_layers
        if not settings["enabled"]:
            return
        if not isinstance(settings["layer"], int) or not 0 <= settings["layer"] < layers:
            raise ValueError(
                f"text_sampler.layer is {settings['layer']!r}; it must be one of the {layers} layers, counted from 0"
            )
        if not isinstance(settings["gamma"], int | float) or settings["gamma"] <= 0:
            raise ValueError(f"text_sampler.gamma is {settings['gamma']!r}; it must be a number above 0")
        for key in ("instruction_start_token_ids", "instruction_end_token_ids"):
            for marker in getattr(self, key):
                if not isinstance(marker, list) or not marker or not all(isinstance(token, int) for token in marker):
                    raise ValueError(f"{key} has the marker {marker!r}; a marker is a list of ids such as [3, 4]")
        if bool(self.instruction_start_token_ids) != bool(self.instruction_end_token_ids):
            raise ValueError(
                "instruction_start_token_ids and instruction_end_token_ids must be given together: they are "
                f"{self.instruction_start_token_ids} and {self.instruction_end_token_ids}"
            )


FocusLlavaConfig.register_for_auto_class()
