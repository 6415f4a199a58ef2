"""From the processor's placeholders to the tokens the language model reads.

The processor writes as many placeholders as LLaVA-NeXT has tokens, because it cannot know how many the samplers keep.
An image with fewer tokens uses its first placeholders; the others leave the sequence. So every token has a place in the
input.

Shapes: B rows, L input tokens of a row, I images, n visual tokens of all images.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .image_geometry import ImageGrid
from .vision_sampling import VisualTokens


@dataclass
class TokenSequence:
    """What is known of each token, padded on the left; every field is [B, tokens]."""

    valid: Tensor
    """bool, False for padding."""
    position: Tensor
    """int64, position for the rotary embedding; 0 for padding."""
    input_position: Tensor
    """int64, index in the input ids; -1 for padding."""
    visual: Tensor
    """int64, index among the visual tokens; -1 for text and padding."""
    is_instruction: Tensor
    """bool, queries of the text-guided sampler."""

    def select(self, keep: Tensor) -> tuple["TokenSequence", Tensor]:
        """The tokens under ``keep`` (bool [B, tokens]), padded on the left to the longest row.

        Returns:
            The shorter sequence, and int64 [B, shorter], the index each of its tokens comes from.
        """
        keep = keep & self.valid
        longest = int(keep.sum(1).max())
        # A stable sort puts the tokens to keep last without changing their order.
        index = keep.long().argsort(dim=1, stable=True)[:, keep.shape[1] - longest :]
        valid = keep.gather(1, index)
        padding = {"valid": False, "position": 0, "input_position": -1, "visual": -1, "is_instruction": False}
        chosen = {f.name: getattr(self, f.name).gather(1, index) for f in fields(self)}
        return TokenSequence(**{k: v.masked_fill(~valid, padding[k]) for k, v in chosen.items()}), index


def image_rows(placeholders_of_row: Tensor, grids: list[ImageGrid]) -> list[list[int]]:
    """The images of each row, in order.

    Args:
        placeholders_of_row: int64 [B].
        grids: the grid of each image, in the order of their placeholders.

    Raises:
        ValueError: if the placeholders do not fit the images.
    """
    remaining = list(range(len(grids)))
    rows: list[list[int]] = []
    for row, placeholders in enumerate(placeholders_of_row.tolist()):
        images, expected = [], 0
        while remaining and expected < placeholders:
            images.append(remaining.pop(0))
            expected += grids[images[-1]].baseline_tokens
        if expected != placeholders:
            raise ValueError(
                f"row {row} has {placeholders} image placeholders, but its images {images} need {expected}: "
                "image sizes, tile size or grid pinpoints of processor and model differ, or the input was cut"
            )
        rows.append(images)
    if remaining:
        raise ValueError(f"images {remaining} have no placeholders in the input ids")
    return rows


def place_visual_tokens(is_placeholder: Tensor, grids: list[ImageGrid], visual: VisualTokens) -> Tensor:
    """int64 [B, L], the visual token each placeholder holds; -1 for text and for placeholders left over.

    Args:
        is_placeholder: bool [B, L], as many as the images have; :func:`image_rows` tells.
        grids: the grid of each image, in the order of their placeholders.
        visual: the tokens of all images.
    """
    device = is_placeholder.device
    baseline = torch.tensor([grid.baseline_tokens for grid in grids], device=device)
    ends = baseline.cumsum(0)
    order = torch.arange(int(ends[-1]), device=device)
    image = torch.searchsorted(ends, order, right=True)
    rank = order - (ends - baseline)[image]
    counts = visual.counts.to(device)
    first = counts.cumsum(0) - counts
    held = torch.where(rank < counts[image], first[image] + rank, -1)
    return torch.full_like(is_placeholder, -1, dtype=torch.long).masked_scatter(is_placeholder, held)
