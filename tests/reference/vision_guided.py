"""Vision-guided sampler (Eq. 1-5 and 10) in float64, cell by cell, for tests to compare with.

Shapes: g cells along a tile side, C hidden size, Hc x Wc cells of the local map, w window side, S scales, n tokens.
"""

import math

import torch
from torch import Tensor

Crop = tuple[int, int, int, int]


def _kernel(scale: str) -> tuple[int, int] | None:
    """Rows and columns of a scale's pooling kernel; None for ``discard``."""
    if scale == "discard":
        return None
    rows, columns = scale.split("x")
    return int(rows), int(columns)


def _window_cells(cells: Tensor, crop: Crop, row: int, column: int, rows: int, columns: int) -> list[Tensor]:
    """The valid cells of the rectangle that begins at (row, column), raster order."""
    top, bottom, left, right = crop
    return [
        cells[r, c]
        for r in range(row, row + rows)
        for c in range(column, column + columns)
        if top <= r < bottom and left <= c < right
    ]


def vision_guided_reference(
    global_view: Tensor,
    local_map: Tensor,
    crop: Crop,
    weight: Tensor,
    bias: Tensor,
    window: int,
    scales: list[str],
    score_pooling: str,
    global_view_mode: str,
    gate: str,
    training: bool,
    newline: Tensor,
    score_scale: float | None = None,
    center_scores: bool = False,
) -> dict:
    """Sample one image.

    Args:
        global_view: [g*g, C], global view after the projector, cell raster order.
        local_map: [Hc, Wc, C], the local tiles put together, before unpadding.
        crop: valid cells of the local map as half-open bounds (top, bottom, left, right).
        weight: [S, g*g] of the selector.
        bias: [S] of the selector.
        window: side of a window in cells.
        scales: pooling kernels ("rows x columns") or "discard", finest first.
        score_pooling: "max" or "mean", how a window becomes one vector for its score.
        global_view_mode: "compress", "keep" or "drop".
        gate: "paper" (multiply by the top-1 probability in training only), "ste" or "switch".
        training: whether the model trains.
        newline: [C], embedding put after each row of local windows that has a valid window.
        score_scale: factor of the scores; None for 1 / sqrt(C).
        center_scores: whether each score loses its mean over the valid windows of the image.

    Returns:
        ``tokens`` [n, C] float64; ``is_newline`` n booleans; ``scale`` of each window in raster order, global view
        first when it is compressed (None for a window without a valid cell); ``probs`` [valid windows, S]; ``f`` [S],
        share of the valid windows that chose each scale; ``P`` [S], mean probability; ``num_windows`` valid ones.
        Gradients flow to every float argument.
    """
    global_view, local_map = global_view.double(), local_map.double()
    weight, bias, newline = weight.double(), bias.double(), newline.double()
    g = math.isqrt(global_view.shape[0])
    hidden = global_view.shape[1]

    maps = [(local_map, crop, True)]
    if global_view_mode == "compress":
        maps.insert(0, (global_view.view(g, g, hidden), (0, g, 0, g), False))

    def scores_of(cells: Tensor, bounds: Crop, row: int, column: int) -> Tensor | None:
        valid = _window_cells(cells, bounds, row, column, window, window)
        if not valid:
            return None
        stacked = torch.stack(valid)
        pooled = stacked.amax(0) if score_pooling == "max" else stacked.mean(0)
        return global_view @ pooled * (1 / math.sqrt(hidden) if score_scale is None else score_scale)

    mean = torch.zeros(g * g, dtype=torch.float64)
    if center_scores:
        every = [
            scores_of(cells, bounds, row, column)
            for cells, bounds, _ in maps
            for row in range(0, cells.shape[0], window)
            for column in range(0, cells.shape[1], window)
        ]
        valid = [score for score in every if score is not None]
        mean = torch.stack(valid).mean(0) if valid else mean

    tokens: list[Tensor] = []
    is_newline: list[bool] = []
    chosen_scales: list[int | None] = []
    probabilities: list[Tensor] = []
    if global_view_mode == "keep":
        tokens.extend(global_view)
        is_newline.extend([False] * len(global_view))

    for cells, bounds, has_newlines in maps:
        for row in range(0, cells.shape[0], window):
            row_has_window = False
            for column in range(0, cells.shape[1], window):
                score = scores_of(cells, bounds, row, column)
                if score is None:
                    chosen_scales.append(None)
                    continue
                row_has_window = True
                logits = weight @ (score - mean) + bias
                probs = torch.softmax(logits, 0)
                choice = next(s for s in range(len(scales)) if logits[s] == logits.max())
                chosen_scales.append(choice)
                probabilities.append(probs)

                if gate == "ste":
                    factor = probs[choice] / probs[choice].detach() if training else torch.ones_like(probs[choice])
                elif gate == "switch" or training:
                    factor = probs[choice]
                else:
                    factor = torch.ones_like(probs[choice])

                kernel = _kernel(scales[choice])
                if kernel is None:
                    continue
                for r in range(row, row + window, kernel[0]):
                    for c in range(column, column + window, kernel[1]):
                        covered = _window_cells(cells, bounds, r, c, *kernel)
                        if covered:
                            tokens.append(torch.stack(covered).amax(0) * factor)
                            is_newline.append(False)
            if has_newlines and row_has_window:
                tokens.append(newline)
                is_newline.append(True)

    num_windows = len(probabilities)
    counts = torch.zeros(len(scales), dtype=torch.float64)
    for scale in chosen_scales:
        if scale is not None:
            counts[scale] += 1
    probs_of_windows = torch.stack(probabilities) if probabilities else weight.new_zeros(0, len(scales))
    return {
        "tokens": torch.stack(tokens) if tokens else global_view.new_zeros(0, hidden),
        "is_newline": is_newline,
        "scale": chosen_scales,
        "probs": probs_of_windows,
        "f": counts / max(num_windows, 1),
        "P": probs_of_windows.sum(0) / max(num_windows, 1),
        "num_windows": num_windows,
    }
