"""Heuristic sampler (supplement section 6) in float64, block by block, for tests to compare with.

Shapes: g cells along a tile side, C hidden size, Hc x Wc cells of the local map, w window side, n tokens.
"""

import math
from fractions import Fraction

import torch
from torch import Tensor

Crop = tuple[int, int, int, int]


def heuristic_reference(
    global_view: Tensor,
    local_map: Tensor,
    crop: Crop,
    window: int,
    keep: float,
    global_view_mode: str,
    newline: Tensor,
) -> dict:
    """Sample one image.

    Args:
        global_view: [g*g, C], global view after the projector, cell raster order.
        local_map: [Hc, Wc, C], the local tiles put together, before unpadding.
        crop: valid cells of the local map as half-open bounds (top, bottom, left, right).
        window: side of a block in cells.
        keep: share of the cells that stay.
        global_view_mode: "compress", "keep" or "drop".
        newline: [C], embedding put after each row of local windows that has a valid window.

    Returns:
        ``tokens`` [n, C] float64, ``is_newline`` n booleans, ``candidates``, the number of cells that were scored, and
        ``margin``, the distance between the worst score that stays and the best that goes (inf where all stay).
        Gradients flow to every float argument.
    """
    global_view, local_map, newline = global_view.double(), local_map.double(), newline.double()
    g = math.isqrt(global_view.shape[0])
    maps = [(local_map, crop, True)]
    if global_view_mode == "compress":
        maps.insert(0, (global_view.view(g, g, -1), (0, g, 0, g), False))

    sequence: list[tuple[Tensor, str]] = []
    scores: list[float] = []  # of the cells of all blocks, one after the other
    if global_view_mode == "keep":
        sequence += [(cell, "whole") for cell in global_view]
    for cells, (top, bottom, left, right), has_newlines in maps:
        for row in range(0, cells.shape[0], window):
            any_valid = False
            for column in range(0, cells.shape[1], window):
                block = [
                    cells[r, c]
                    for r in range(row, row + window)
                    for c in range(column, column + window)
                    if top <= r < bottom and left <= c < right
                ]
                if not block:
                    continue
                any_valid = True
                similarity = global_view @ torch.stack(block).T  # A_i, [cells of the global view, cells of the block]
                scores += similarity.mean(0).tolist()
                sequence += [(cell, "cell") for cell in block]
            if has_newlines and any_valid:
                sequence.append((newline, "newline"))

    count = math.ceil(Fraction(str(keep)) * len(scores))
    ranking = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable: equals stay in reading order
    chosen = set(ranking[:count])
    margin = scores[ranking[count - 1]] - scores[ranking[count]] if 0 < count < len(scores) else math.inf
    tokens, is_newline, number = [], [], 0
    for token, kind in sequence:
        stays = kind != "cell" or number in chosen
        number += kind == "cell"
        if stays:
            tokens.append(token)
            is_newline.append(kind == "newline")
    return {"tokens": torch.stack(tokens), "is_newline": is_newline, "candidates": len(scores), "margin": margin}
