"""What the samplers can do with this image geometry and this many layers."""

from megatron_focus.config.checks.choices import one_of
from megatron_focus.config.schema import ModelConfig, VisionSamplerConfig

KERNELS = ("1x1", "2x1", "1x2", "2x2", "4x2", "2x4", "4x4")


def vision_sampler_problems(model: ModelConfig) -> list[str]:
    """One sentence for each setting of the vision-guided sampler that does not fit."""
    sampler, problems = model.vision_sampler, []
    cells = model.image.cells_per_side
    problems += one_of("model.vision_sampler.method", sampler.method, ("learned", "heuristic"))
    problems += one_of("model.vision_sampler.score_pooling", sampler.score_pooling, ("max", "mean"))
    problems += one_of("model.vision_sampler.gate", sampler.gate, ("paper", "ste", "switch"))
    problems += one_of("model.vision_sampler.global_view", sampler.global_view, ("compress", "keep", "drop"))
    problems += one_of("model.vision_sampler.balance_scope", sampler.balance_scope, ("batch", "row"))
    problems += one_of("model.vision_sampler.window", sampler.window, (1, 2, 4, 8, 12))
    if not sampler.enabled:
        return problems
    problems += _heuristic_problems(sampler)
    if not set(sampler.scales) - {"discard"}:
        problems.append(f"model.vision_sampler.scales={sampler.scales} leaves no scale that keeps tokens")
    if sampler.window > 0 and cells % sampler.window:
        problems.append(
            f"model.vision_sampler.window={sampler.window} does not divide the {cells} cells along a tile "
            f"(tile_size {model.image.tile_size} / patch_size {model.image.patch_size})"
        )
    allowed = ("1x1", "discard") if sampler.window == 1 else KERNELS
    for scale in sampler.scales:
        if scale not in allowed:
            problems.append(
                f"model.vision_sampler.scales has {scale!r}, which window {sampler.window} does not offer; "
                f"use some of {', '.join(allowed)}"
            )
        elif scale != "discard" and any(sampler.window % int(side) for side in scale.split("x")):
            problems.append(
                f"model.vision_sampler.scales has {scale!r}, which does not fit into window {sampler.window}"
            )
    if sampler.score_scale is not None and sampler.score_scale <= 0:
        problems.append(f"model.vision_sampler.score_scale={sampler.score_scale} must be above 0, or null")
    order = [s for s in (*KERNELS, "discard") if s in sampler.scales]
    if sampler.scales != order:
        problems.append(
            f"model.vision_sampler.scales={sampler.scales} must name each scale once, finest first: {order}"
        )
    weights = sampler.balance_weights
    if weights is not None and (
        len(weights) != len(sampler.scales) or abs(sum(weights) - len(weights)) > 1e-6 or min(weights, default=0) < 0
    ):
        problems.append(
            f"model.vision_sampler.balance_weights={weights} must be one weight >= 0 a scale, "
            f"{len(sampler.scales)} in all, with the sum {len(sampler.scales)} (Eq. 10)"
        )
    return problems


def _heuristic_problems(sampler: VisionSamplerConfig) -> list[str]:
    """The heuristic sampler keeps single cells, and has nothing that a selector has."""
    keep = sampler.heuristic_keep
    if sampler.method != "heuristic":
        wrong = [f"model.vision_sampler.heuristic_keep={keep} belongs to model.vision_sampler.method=heuristic"]
        return wrong if keep is not None else []
    problems = []
    # The sampler counts in parts per million.
    if keep is None or not 1e-6 <= keep <= 1:
        problems.append(
            f"model.vision_sampler.method=heuristic needs model.vision_sampler.heuristic_keep, a share above 0 and at "
            f"most 1; it is {keep}"
        )
    if sampler.scales != ["1x1"]:
        problems.append(
            f"model.vision_sampler.method=heuristic keeps single cells: set model.vision_sampler.scales to ['1x1'], "
            f"not {sampler.scales}"
        )
    usual = VisionSamplerConfig()
    for key in ("score_pooling", "score_scale", "center_scores", "gate", "balance_weights", "balance_scope"):
        value = getattr(sampler, key)
        if value != getattr(usual, key):
            problems.append(f"model.vision_sampler.{key}={value} belongs to model.vision_sampler.method=learned")
    return problems


def text_sampler_problems(model: ModelConfig) -> list[str]:
    """One sentence for each setting of the text-guided sampler that does not fit."""
    sampler, layers = model.text_sampler, model.language.num_layers
    problems = one_of("model.text_sampler.mode", sampler.mode, ("off", "direct", "train", "random"))
    problems += one_of("model.text_sampler.queries", sampler.queries, ("first", "random_turn"))
    if sampler.queries == "random_turn" and sampler.mode in ("off", "direct"):
        problems.append(
            f"model.text_sampler.queries=random_turn takes the loss from the answers before the turn that asks, but "
            f"mode={sampler.mode} drops nothing in training: use queries=first, or mode=random or train"
        )
    if sampler.mode == "off":
        return problems
    if not 0 <= sampler.layer < layers:
        problems.append(f"model.text_sampler.layer={sampler.layer} is not a layer: use 0 to {layers - 1}")
    if sampler.gamma <= 0:
        problems.append(f"model.text_sampler.gamma={sampler.gamma} must be above 0")
    if sampler.mode == "random":
        span = sampler.layer_range
        if len(span) != 2 or not 0 <= span[0] <= span[1] < layers:
            problems.append(
                f"model.text_sampler.layer_range={span} must be [first, last] within layers 0 to {layers - 1}"
            )
        gammas = sampler.gamma_range
        if len(gammas) != 2 or not 0 < gammas[0] <= gammas[1]:
            problems.append(f"model.text_sampler.gamma_range={gammas} must be [low, high] with 0 < low <= high")
    return problems
