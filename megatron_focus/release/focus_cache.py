"""The key-value cache of a model whose later layers hold fewer tokens than its earlier ones."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from .selection import ImageSelection
from .token_sequence import TokenSequence


class FocusCache(DynamicCache):
    """A dynamic cache that also remembers which tokens its layers hold and where the next token stands.

    ``get_seq_length()`` counts the tokens of the *input* seen so far, placeholders and padding included, because that
    is what ``generate`` compares with its input ids; ``get_seq_length(i)`` counts what layer i holds.
    """

    def __init__(self, config: PretrainedConfig):
        super().__init__(config=config)
        self.input_length = 0
        self.next_position: Tensor | None = None
        """int64 [B], position of the next token of each row."""
        self.all_mask: Tensor | None = None
        """bool [B, tokens], tokens (not padding) held by the layers before the drop."""
        self.kept_mask: Tensor | None = None
        """bool [B, kept tokens], the same of the layers behind it."""
        self.drop_layer: int | None = None
        """The layer before which tokens were dropped, whatever the model is set to later."""
        self.selection: list[ImageSelection] | None = None
        """What the samplers did to the images, if the first pass was asked for it."""

    @property
    def num_rows(self) -> int:
        """B, beams and samples of a prompt counted each."""
        return 0 if self.next_position is None else len(self.next_position)

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """Input tokens seen so far, or the tokens that one layer holds."""
        return self.input_length if layer_idx is None else super().get_seq_length(layer_idx)

    def with_past(self, held: Tensor | None, new: Tensor) -> Tensor:
        """bool [B, held + new], the mask of the tokens some layers hold with that of new ones behind it."""
        return new if held is None else torch.cat([held, new], dim=1)

    def continuation(self, valid: Tensor) -> TokenSequence:
        """Text tokens behind the cached ones.

        Args:
            valid: bool [B, L], False for padding.
        """
        assert self.next_position is not None
        position = (self.next_position[:, None] + valid.cumsum(1) - 1).clamp(min=0)
        place = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape) + self.input_length
        place = place.masked_fill(~valid, -1)
        return TokenSequence(valid, position, place, torch.full_like(place, -1), torch.zeros_like(valid))

    def record(self, positions: Tensor, all_mask: Tensor, kept_mask: Tensor) -> None:
        """Remember where the last of the new tokens stand (int64 [B, L]) and which tokens the layers hold now."""
        self.next_position = positions[:, -1] + 1
        self.all_mask, self.kept_mask = all_mask, kept_mask

    def _map_rows(self, function: Callable[[Tensor], Tensor | None]) -> None:
        for name in ("next_position", "all_mask", "kept_mask"):
            if (tensor := getattr(self, name)) is not None:
                setattr(self, name, function(tensor))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rearrange the rows for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._map_rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        self._map_rows(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._map_rows(lambda t: t[indices])

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.input_length = 0
        self.drop_layer = self.selection = None
        self._map_rows(lambda t: None)

    @property
    def is_croppable(self) -> bool:
        """Never: the last input tokens need not be the last tokens of every layer."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse.

        Raises:
            ValueError: always; see ``is_croppable``.
        """
        raise ValueError("a FocusCache cannot be cropped, so assisted generation is not supported")
