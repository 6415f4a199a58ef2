"""Heuristic sampler: the cells that resemble the global view most (paper, supplement section 6 and Table 7).

The baseline that the paper compares its learned sampler with. It has no parameters and pools nothing: the score of a
cell is the mean of its inner products with the cells of the global view, ``Score_ij = 1/G sum_k X_g[k] . X_i[j]``, the
scores of all blocks of an image stand in one list, and the largest stay.

What the supplement leaves open, and how it is read here:

- A cell counts (is scored, and is one of the N that k is a share of) if the learned sampler would sample it: the cells
  of the local map inside the picture, and with ``global_view: compress`` those of the global view, in the same list.
  ``keep`` leaves the global view whole and samples the local map alone; ``drop`` uses it as context alone.
- k = ceil(share * N) for each image on its own, so an image always keeps a token; the share is read to six decimals,
  so that a share of 0.6 of 5 cells is 3. Newlines are neither counted nor dropped.
- Scores are float32 and come after the projector. The factor 1 / sqrt(C) of the learned sampler's scores would not
  change their order and is left out.
- Equal scores: the cell that is read first stays.
- Order: as the learned sampler's, windows in raster order, cells in raster order inside a window, a newline behind each
  row of windows. The window decides nothing else here, and with window 1 and a share of 1 the tokens are LLaVA-NeXT's.
- Which cells stay is not differentiable: gradients reach the cells that stay, and them alone.

Under tensor parallelism every rank holds the same features; ``agree`` makes all ranks choose alike to the bit.

Shapes: t tiles, g cells along a tile, C hidden size, E candidates of the plan, V visual tokens, I images.
"""

import torch
from torch import Tensor, nn

from megatron_focus.config.schema import VisionSamplerConfig
from megatron_focus.samplers.vision_guided import Agree, VisualTokens, token_source
from megatron_focus.samplers.window_plan import NEWLINE_SCALE, WindowPlan

_PARTS = 1_000_000
"""Shares are read in parts per million, so that counting is exact."""


class HeuristicSampler(nn.Module):
    """Keeps a share of the cells; used in the place of ``VisionGuidedSampler``."""

    def __init__(self, config: VisionSamplerConfig) -> None:
        super().__init__()
        assert config.heuristic_keep is not None  # validated
        self.config, self.keep = config, config.heuristic_keep

    def forward(self, features: Tensor, newline: Tensor, plan: WindowPlan, agree: Agree | None = None) -> VisualTokens:
        """Score the cells and gather those that stay.

        Args:
            features: [t, g * g, C], projected features of every tile, global views first of their image.
            newline: [C], the newline embedding.
            plan: the row's candidates at the single scale ``1x1``, on the device of ``features``.
            agree: gives the choice of one rank to all that hold the same features; None where there is one.

        Returns:
            the row's tokens; every counted window counts for the one scale, and there is no balance term.
        """
        always = plan.scale == NEWLINE_SCALE
        candidate = (~always).nonzero().squeeze(1)
        with torch.no_grad():
            # A 1x1 candidate reads its cell itself, so its source is the cell's place among all cells.
            score = cell_scores(features, plan.context_tile).flatten()[plan.source[candidate]]
            kept = candidate[top_share(score, plan.image[candidate], plan.num_images, self.keep)]
            kept = kept if agree is None else agree(kept)
        taken = always.clone()
        taken[kept] = True
        picked = taken.nonzero().squeeze(1)
        image = plan.image[picked]
        return VisualTokens(
            tokens=token_source(features, newline, plan, [])[plan.source[picked]],
            newline=plan.newline[picked],
            image=image,
            lengths=torch.bincount(image, minlength=plan.num_images),
            scale_counts=plan.window_counted.sum()[None],
            balance=features.new_zeros((), dtype=torch.float32),
        )


def cell_scores(features: Tensor, context_tile: Tensor) -> Tensor:
    """Mean inner product of every cell with the cells of its image's global view, float32 [t, g * g].

    The mean is taken before the product, which is the same number and saves the matrix of similarities.

    Args:
        features: [t, g * g, C].
        context_tile: int64 [t], the global view of each tile's image.
    """
    context = features[context_tile].mean(1, dtype=torch.float32)
    return torch.bmm(features.float(), context[:, :, None])[..., 0]


def top_share(score: Tensor, image: Tensor, num_images: int, share: float) -> Tensor:
    """Indices of the ceil(share * N) largest scores of each image, ties to the first, int64, in no special order.

    Args:
        score: float [n].
        image: int64 [n], rising.
        num_images: I.
        share: above 0, at most 1.
    """
    count = torch.bincount(image, minlength=num_images)
    keep = (count * round(share * _PARTS) + _PARTS - 1) // _PARTS
    # Sorted by image, and by falling score within an image; stable, so equals stay in reading order.
    best = score.argsort(descending=True, stable=True)
    best = best[image[best].argsort(stable=True)]
    first = count.cumsum(0) - count
    rank = torch.arange(len(score), device=score.device) - first[image[best]]
    return best[rank < keep[image[best]]]
