"""The decoder block whose sequence really shrinks.

Built from Megatron-Core's ``TransformerBlock``: same layers, same checkpoint names, same pipeline contract. Only
``forward`` differs: before any layer, on any stage, samples may lose visual tokens, and everything downstream of that
point, on this stage and the next, works on the shorter row.

Shapes: T tokens of the row (on this rank's shard under sequence parallelism: T / tp), C hidden size.
"""

from dataclasses import dataclass, field

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.utils import make_viewless_tensor
from torch import Tensor

from megatron_focus.models.core_attention import packed_row_params
from megatron_focus.models.packed_layout import VISUAL, PackedLayout
from megatron_focus.models.rotary import PositionRotary
from megatron_focus.models.token_selection import kept_tokens


@dataclass(kw_only=True)
class DecoderReport:
    """What one forward pass of this stage did, for metrics; nothing in it waits for the device."""

    dropped: list[tuple[int, Tensor]] = field(default_factory=list)
    """(layer, visual tokens dropped before it, on the device)."""
    segments: list[tuple[int, list[int]]] = field(default_factory=list)
    """(layers, length of each sample in them)."""


class ShrinkingDecoder(TransformerBlock):
    """``TransformerBlock`` over a packed row, dropping visual tokens where the layout says so."""

    rotary: PositionRotary

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, layout: PackedLayout
    ) -> tuple[Tensor, PackedLayout, DecoderReport]:
        """Run this stage's layers.

        Args:
            hidden_states: [T, 1, C]; this rank's shard of it under sequence parallelism.
            layout: its layout, padding included.

        Returns:
            hidden states after the layers (and the final norm on the last stage), their layout, and what was dropped.
        """
        hidden_states = make_viewless_tensor(inp=hidden_states, requires_grad=True, keep_graph=True)
        report = DecoderReport()
        angles = self.rotary(layout.position)
        start = 0
        while start < len(self.layers):
            index = self.layers[start].layer_number - 1
            if index in layout.drop_layers:
                before = (layout.kind == VISUAL).sum()
                hidden_states, layout = self._drop(hidden_states, layout, index, start, angles)
                report.dropped.append((index, before - (layout.kind == VISUAL).sum()))
                angles = self.rotary(layout.position)
            end = self._end_of_group(start, layout)
            hidden_states = self._run(hidden_states, start, end, layout, angles)
            report.segments.append((end - start, layout.seqlens))
            start = end
        if self.final_layernorm is not None:
            hidden_states = self.final_layernorm(hidden_states)
        return make_viewless_tensor(inp=hidden_states, requires_grad=True, keep_graph=True), layout, report

    def _drop(
        self, hidden_states: Tensor, layout: PackedLayout, index: int, start: int, angles: Tensor
    ) -> tuple[Tensor, PackedLayout]:
        """Gather the tokens that stay. The choice is made here, outside any recomputed region."""
        keep = kept_tokens(self.layers[start], hidden_states, layout, index, angles, self.pg_collection)
        layout = layout.select(keep)
        if not self.config.sequence_parallel:
            return hidden_states[keep], layout
        # Every rank selects from the whole row and keeps its shard of the result.
        whole = tensor_parallel.gather_from_sequence_parallel_region(
            hidden_states, tensor_parallel_output_grad=False, group=self.pg_collection.tp
        )
        layout = layout.padded(self.pg_collection.tp.size())
        shorter = torch.nn.functional.pad(whole[keep], (0, 0, 0, 0, 0, len(layout) - len(keep)))
        return tensor_parallel.scatter_to_sequence_parallel_region(shorter, group=self.pg_collection.tp), layout

    def _end_of_group(self, start: int, layout: PackedLayout) -> int:
        """End of the run of layers that starts here: the next drop, or the size of a recomputed group."""
        longest = len(self.layers) - start
        if self.config.recompute_granularity == "full" and self.training:
            assert self.config.recompute_num_layers is not None
            longest = self.config.recompute_num_layers if self.config.recompute_method == "uniform" else 1
        end = start + 1
        while end < min(start + longest, len(self.layers)):
            if self.layers[end].layer_number - 1 in layout.drop_layers:
                break
            end += 1
        return end

    def _run(self, hidden_states: Tensor, start: int, end: int, layout: PackedLayout, angles: Tensor) -> Tensor:
        """Layers ``start`` to ``end``, recomputed in the backward pass where the configuration says so."""
        params = packed_row_params(layout, angles)

        def layers(hidden_states: Tensor) -> Tensor:
            for layer in self.layers[start:end]:
                hidden_states, _ = layer(hidden_states=hidden_states, attention_mask=None, packed_seq_params=params)
            return hidden_states

        recompute = self.config.recompute_granularity == "full" and self.training
        if recompute and self.config.recompute_method == "block":
            assert self.config.recompute_num_layers is not None
            recompute = start < self.config.recompute_num_layers
        if not recompute:
            return layers(hidden_states)
        return tensor_parallel.checkpoint(layers, self.config.distribute_saved_activations, hidden_states)
