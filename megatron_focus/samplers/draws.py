"""The random layer and gamma of each sample in training (paper section 3.3, last paragraph)."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_focus.config.schema import TextSamplerConfig


@dataclass(kw_only=True)
class TextDraws:
    """Where and how much each sample of a row drops."""

    drop_layer: Tensor
    """int32 [S], layer before which tokens are dropped; -1 for never."""
    gamma: Tensor
    """float32 [S]."""

    def to(self, device: torch.device) -> "TextDraws":
        """A copy on ``device``."""
        return TextDraws(drop_layer=self.drop_layer.to(device), gamma=self.gamma.to(device))


def draw(config: TextSamplerConfig, sample_keys: Iterable[int], *, seed: int, step: int, training: bool) -> TextDraws:
    """Layer and gamma of each sample.

    In mode ``random`` a draw depends on (seed, step, sample key) alone, through a counter-based generator: the same on
    every rank, under every layout, in recomputation and after a resume.

    Args:
        config: the sampler's settings.
        sample_keys: hash of each sample's id.
        seed: seed of the run.
        step: training step, from 0.
        training: False gives the fixed layer and gamma of inference.
    """
    keys = list(sample_keys)
    if config.mode == "off" or (config.mode == "direct" and training):
        return _fixed(len(keys), -1, 1.0)
    if config.mode != "random" or not training:
        return _fixed(len(keys), config.layer, config.gamma)
    layers, gammas = [], []
    for key in keys:
        generator = np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, key]))
        layers.append(int(generator.integers(config.layer_range[0], config.layer_range[1], endpoint=True)))
        gammas.append(float(generator.uniform(config.gamma_range[0], config.gamma_range[1])))
    return TextDraws(drop_layer=torch.tensor(layers, dtype=torch.int32), gamma=torch.tensor(gammas))


def _fixed(count: int, layer: int, gamma: float) -> TextDraws:
    return TextDraws(drop_layer=torch.full((count,), layer, dtype=torch.int32), gamma=torch.full((count,), gamma))
