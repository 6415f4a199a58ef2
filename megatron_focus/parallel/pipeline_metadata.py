"""The layout of a row rides inside its hidden states from stage to stage.

Stages exchange the shape of each tensor before the tensor itself (``variable_seq_lengths``), so a row may shrink in
mid-pipeline; but the next stage must also learn which tokens are left. The layout's int32 values are appended, bit for
bit, as extra rows of the hidden states: no further message, and right under every schedule. Point-to-point messages
copy bits, so nothing is lost in bf16; the extra rows are cut off before any arithmetic and their gradient is zero.

Shapes: s tokens on this rank, H hidden size, r metadata rows.
"""

import torch
from torch import Tensor

from megatron_focus.models.packed_layout import PackedLayout


def append_layout(hidden_states: Tensor, layout: PackedLayout) -> Tensor:
    """[s, 1, H] -> [s + r, 1, H]; the last row holds r - 1 in its first int32."""
    ints = layout.to_ints()
    per_row = hidden_states.shape[2] * hidden_states.element_size() // 4
    rows = -(-len(ints) // per_row)
    buffer = ints.new_zeros((rows + 1) * per_row)
    buffer[: len(ints)] = ints
    buffer[rows * per_row] = rows
    extra = buffer.view(hidden_states.dtype).view(rows + 1, 1, -1)
    return torch.cat([hidden_states, extra])


def split_layout(received: Tensor) -> tuple[Tensor, PackedLayout]:
    """The inverse of ``append_layout``; the hidden states stay connected to ``received`` in the graph."""
    bits = received.detach()
    rows = int(bits[-1, 0].contiguous().view(torch.int32)[0])
    ints = bits[-1 - rows : -1].contiguous().view(torch.int32).flatten()
    return received[: -1 - rows], PackedLayout.from_ints(ints)
