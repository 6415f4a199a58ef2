"""What every token of the fused row is, and where each sample lies.

The layout is made where text and images are fused (first pipeline stage), shrinks with the hidden states wherever
tokens are dropped, and travels with them from stage to stage (``parallel/pipeline_metadata.py``). All per-token fields
go through the same gather.

Shapes: T tokens of the fused row, S samples.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from data_pipeline.row import IGNORE_INDEX

TEXT, INSTRUCTION, VISUAL, NEWLINE, PAD = range(5)
"""Kinds of token. Only VISUAL tokens are scored and dropped; only INSTRUCTION tokens ask."""


@dataclass(kw_only=True)
class PackedLayout:
    """Per-token and per-sample facts of a fused row."""

    position: Tensor
    """int32 [T], position id within the sample, for RoPE; kept when other tokens are dropped."""
    kind: Tensor
    """int32 [T]."""
    image: Tensor
    """int32 [T], image of a visual token or newline, -1 elsewhere."""
    label: Tensor
    """int32 [T], id to predict after the token, or ``IGNORE_INDEX``."""
    cu_seqlens: Tensor
    """int32 [S + 1], where each sample begins. Padding belongs to the last sample, whose end nothing reads."""
    drop_layer: Tensor
    """int32 [S], layer (from 0) before which the sample's tokens are dropped; -1 for never."""
    gamma: Tensor
    """float64 [S], share of importance to exceed."""

    def __len__(self) -> int:
        return len(self.kind)

    @cached_property
    def seqlens(self) -> list[int]:
        """Length of each sample, on the host."""
        return self.cu_seqlens.diff().tolist()

    @cached_property
    def drop_layers(self) -> list[int]:
        """``drop_layer`` on the host."""
        return self.drop_layer.tolist()

    @cached_property
    def sample(self) -> Tensor:
        """int64 [T], sample of each token."""
        index = torch.arange(len(self.cu_seqlens) - 1, device=self.kind.device)
        return index.repeat_interleave(self.cu_seqlens.diff(), output_size=len(self))

    def select(self, keep: Tensor) -> "PackedLayout":
        """The layout of the tokens ``keep``, int64 [T'] in rising order."""
        lengths = torch.bincount(self.sample[keep], minlength=len(self.cu_seqlens) - 1)
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        per_token = {name: getattr(self, name)[keep] for name in ("position", "kind", "image", "label")}
        return replace(self, **per_token, cu_seqlens=cu_seqlens)

    def padded(self, multiple: int) -> "PackedLayout":
        """The layout with padding up to a multiple of ``multiple`` tokens (sequence parallelism needs one)."""
        extra = -len(self) % multiple
        if extra == 0:
            return self
        fill = {"position": 0, "kind": PAD, "image": -1, "label": IGNORE_INDEX}
        per_token = {
            name: torch.nn.functional.pad(getattr(self, name), (0, extra), value=value) for name, value in fill.items()
        }
        cu_seqlens = self.cu_seqlens.clone()
        cu_seqlens[-1] += extra
        return replace(self, **per_token, cu_seqlens=cu_seqlens)

    def to_ints(self) -> Tensor:
        """All of it as one int32 vector; ``from_ints`` reads it back bit for bit."""
        sizes = torch.tensor([len(self), len(self.drop_layer)], dtype=torch.int32, device=self.kind.device)
        return torch.cat([sizes, *(getattr(self, f.name).view(torch.int32) for f in fields(self))])

    @classmethod
    def from_ints(cls, ints: Tensor) -> "PackedLayout":
        """The inverse of ``to_ints``; ``ints`` may be longer."""
        tokens, samples = ints[:2].tolist()
        sizes = dict.fromkeys(("position", "kind", "image", "label"), tokens)
        sizes |= {"cu_seqlens": samples + 1, "drop_layer": samples, "gamma": 2 * samples}
        values, start = {}, 2
        for name, size in sizes.items():
            values[name] = ints[start : start + size]
            start += size
        return cls(**values | {"gamma": values["gamma"].clone().view(torch.float64)})
