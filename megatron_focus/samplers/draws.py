"""What is drawn for each sample in training: layer, gamma (paper section 3.3, last paragraph), and who asks.

Shapes: S samples, N text tokens.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data_pipeline.row import IGNORE_INDEX, PackedRow
from megatron_focus.config.schema import TextSamplerConfig

_DROP, _ASKING = 0, 1
"""Streams of random numbers of a sample in a step."""

NOBODY = -1
"""``asking_turn`` of a sample in which no words ask, so that nothing is dropped."""


@dataclass(kw_only=True)
class TextDraws:
    """Where and how much each sample of a row drops, and which of its user turns asks."""

    drop_layer: Tensor
    """int32 [S], layer before which tokens are dropped; -1 for never."""
    gamma: Tensor
    """float64 [S], as precise as in a release: a share that equals gamma must be the same on both sides."""
    asking_turn: Tensor
    """int64 [S], the ``user_turn`` whose tokens are the queries, or ``NOBODY``."""

    def to(self, device: torch.device) -> "TextDraws":
        """A copy on ``device``."""
        return TextDraws(
            drop_layer=self.drop_layer.to(device),
            gamma=self.gamma.to(device),
            asking_turn=self.asking_turn.to(device),
        )


def draw(config: TextSamplerConfig, row: PackedRow, *, seed: int, step: int, training: bool) -> TextDraws:
    """Layer, gamma and asking turn of each sample of a row.

    What is random depends on (seed, step, sample key) alone, through a counter-based generator: the same on every rank,
    under every layout, in recomputation and after a resume.

    In training, no answer that is learnt may decide which tokens are kept while it is learnt. So the first turn asks
    (``queries: first``), which has seen no answer, or a turn drawn for the sample (``random_turn``), the answers before
    which are then not learnt: see ``without_loss_on_history``. Where answers stand before every turn that could ask,
    such as a caption that follows the picture alone, nobody asking is drawn as well, or they would never be learnt. At
    inference the latest turn asks.

    Args:
        config: the sampler's settings.
        row: the samples, in host memory.
        seed: seed of the run.
        step: training step, from 0.
        training: False gives the fixed layer and gamma of inference.
    """
    drops = config.mode != "off" and not (config.mode == "direct" and training)
    layers, gammas, turns = [], [], []
    for key, turn in zip(row.sample_keys.tolist(), row.user_turn.split(row.lengths), strict=True):
        if not drops:
            layer, gamma = -1, 1.0
        elif config.mode == "random" and training:
            layer, gamma = layer_and_gamma(config, key, seed=seed, step=step)
        else:
            layer, gamma = config.layer, config.gamma
        could_ask = turn[turn >= 0].unique().tolist() or [NOBODY]
        if not training:
            asking = could_ask[-1]
        elif config.queries == "first":
            asking = 0 if could_ask[0] == 0 else NOBODY
        else:
            choices = could_ask if could_ask[0] <= 0 else [NOBODY, *could_ask]
            asking = choices[_generator(_ASKING, key, seed, step).integers(len(choices))]
        layers.append(layer)
        gammas.append(gamma)
        turns.append(asking)
    return TextDraws(
        drop_layer=torch.tensor(layers, dtype=torch.int32),
        gamma=torch.tensor(gammas, dtype=torch.float64),
        asking_turn=torch.tensor(turns, dtype=torch.int64),
    )


def layer_and_gamma(config: TextSamplerConfig, key: int, *, seed: int, step: int) -> tuple[int, float]:
    """The draw of mode ``random`` for one sample; see ``draw``."""
    generator = _generator(_DROP, key, seed, step)
    layer = int(generator.integers(config.layer_range[0], config.layer_range[1], endpoint=True))
    return layer, float(generator.uniform(config.gamma_range[0], config.gamma_range[1]))


def without_loss_on_history(config: TextSamplerConfig, row: PackedRow, draws: TextDraws) -> PackedRow:
    """The row with labels on the answers behind the asking turn alone, for ``queries: random_turn``.

    The turn that asks has read the answers before it. They are history, as at inference, and history is not learnt.
    """
    if config.queries != "random_turn":
        return row
    labels = row.labels.clone()
    parts = zip(labels.split(row.lengths), row.user_turn.split(row.lengths), draws.asking_turn, strict=True)
    for label, turn, asking in parts:
        if asking != NOBODY:
            label[: int((turn == asking).nonzero()[0])] = IGNORE_INDEX
    return replace(row, labels=labels)


def asks(row: PackedRow, draws: TextDraws) -> Tensor:
    """bool [N], the text tokens that are the queries of Eq. 6, on the device of the row."""
    lengths = row.cu_seqlens.diff()
    asking = draws.asking_turn.repeat_interleave(lengths, output_size=len(row.tokens))
    return (row.user_turn == asking) & (asking != NOBODY)


def _generator(stream: int, key: int, seed: int, step: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, stream, key]))
