"""Text and images become one row: every placeholder is replaced by the visual tokens of its image.

Shapes: N text tokens (one placeholder an image), I images, V visual tokens, T = N - I + V, C hidden size, S samples.
"""

import torch
from torch import Tensor

from data_pipeline.row import IGNORE_INDEX, PackedRow
from megatron_focus.models.packed_layout import INSTRUCTION, NEWLINE, TEXT, VISUAL, PackedLayout
from megatron_focus.samplers.draws import TextDraws, asks
from megatron_focus.samplers.vision_guided import VisualTokens


def fuse(
    row: PackedRow,
    text: Tensor,
    visual: VisualTokens,
    image_token_id: int,
    draws: TextDraws,
) -> tuple[Tensor, PackedLayout]:
    """Put the visual tokens where their placeholders stand.

    Args:
        row: the packed row.
        text: [N, C], embedded text (the placeholders' own embeddings are not used).
        visual: the row's visual tokens.
        image_token_id: id of the placeholder.
        draws: where each sample drops, and who asks.

    Returns:
        the fused row [T, C] and its layout.

    Raises:
        ValueError: the number of placeholders differs from the number of images.
    """
    is_image = row.tokens == image_token_id
    placeholder = is_image.nonzero().squeeze(1)
    if len(placeholder) != len(visual.lengths):
        raise ValueError(
            f"the row of samples {', '.join(row.sample_ids)} has {len(placeholder)} image placeholders "
            f"but {len(visual.lengths)} images"
        )
    device, total = text.device, len(text) - len(placeholder) + len(visual.tokens)
    lengths = torch.ones_like(row.tokens)
    lengths[placeholder] = visual.lengths
    ends = lengths.cumsum(0)

    # Source of every fused token in [text; visual]: a token of text, or the next one of its image.
    origin = torch.arange(len(text), device=device).repeat_interleave(lengths, output_size=total)
    from_image = is_image[origin]
    source = origin.clone()
    source[from_image] = len(text) + torch.arange(len(visual.tokens), device=device)
    fused = torch.cat([text, visual.tokens.to(text.dtype)])[source]

    kind = torch.where(asks(row, draws), INSTRUCTION, TEXT)[origin].to(torch.int32)
    kind[from_image] = torch.where(visual.newline, NEWLINE, VISUAL).to(torch.int32)
    image = torch.full((total,), -1, dtype=torch.int32, device=device)
    image[from_image] = visual.image.to(torch.int32)
    label = row.labels[origin].to(torch.int32)
    # The label of a placeholder is what follows the image, so its last token predicts it. That is a newline, which is
    # never dropped, unless padding leaves nothing of the image's own tiles.
    last = torch.zeros(total, dtype=torch.bool, device=device)
    last[ends[placeholder] - 1] = True
    label[from_image & ~last] = IGNORE_INDEX
    cu_seqlens = torch.nn.functional.pad(ends, (1, 0))[row.cu_seqlens.long()]
    begin = cu_seqlens[:-1].repeat_interleave(cu_seqlens.diff(), output_size=total)
    return fused, PackedLayout(
        position=(torch.arange(total, device=device) - begin).to(torch.int32),
        kind=kind,
        image=image,
        label=label,
        cu_seqlens=cu_seqlens.to(torch.int32),
        drop_layer=draws.drop_layer,
        gamma=draws.gamma,
    )
