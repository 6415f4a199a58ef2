"""What a sample is expected to cost in training, from the counts of ``megatron_focus.models.flops``.

The loader evens rows and ranks out by it, see ``data_pipeline.loading.cost``.

Shapes: n samples.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.loading.cost import SampleCost
from megatron_focus.config.schema import ModelConfig, TextSamplerConfig
from megatron_focus.models.flops import decoder_layer_flops, head_flops, training_passes, vision_flops
from megatron_focus.samplers.draws import layer_and_gamma

DROPPED_PER_GAMMA = 5 / 3
"""Share of the visual tokens dropped, per unit by which gamma is below 1: the paper's 0.25 at gamma = 0.85."""


def sample_cost(model: ModelConfig, *, freeze: Collection[str] = (), seed: int) -> SampleCost:
    """The cost of a sample in a training step, in units of a token's pass through all decoder layers.

    Forward and backward passes count (``training_passes``). The head computes labelled tokens only. The vision-guided
    sampler, a fraction of a percent, is left out.

    Args:
        model: sizes and samplers.
        freeze: modules that are not trained, see ``optimizer.freeze``.
        seed: ``training.seed``, of the draws of the text-guided sampler.
    """
    layers = model.language.num_layers
    # One layer's FLOPs are a n + b n^2, so lengths 1 and 2 give a and b.
    one, two = (decoder_layer_flops(model, [length]) for length in (1, 2))
    quadratic = (two - 2 * one) / 2
    linear = one - quadratic
    tower, decoder = training_passes(freeze)
    unit = layers * linear * decoder
    return SampleCost(
        per_tile=tower * vision_flops(model, 1) / unit,
        attention=quadratic / linear,
        head=decoder * head_flops(model, 1) / unit,
        expected_drop=_drop(model, seed),
    )


def _drop(model: ModelConfig, seed: int) -> "DrawnDrop | FixedDrop | None":
    sampler, layers = model.text_sampler, model.language.num_layers
    if sampler.mode in ("off", "direct"):
        return None
    if sampler.mode == "random":
        return DrawnDrop(sampler, layers, seed)
    return FixedDrop(sampler.layer / layers, kept_share(np.float64(sampler.gamma)))


def kept_share(gamma: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    """Share of the visual tokens that is expected to be left at a gamma: a line through the paper's figure.

    A product, not a power: powers are not rounded the same way on every CPU, see ``SampleCost``.
    """
    return np.clip(1.0 - DROPPED_PER_GAMMA * (1.0 - gamma), 0.0, 1.0)


@dataclass(frozen=True)
class FixedDrop:
    """All samples drop before one layer, with one gamma."""

    before: float
    kept: NDArray[np.float64]

    def __call__(self, keys: NDArray[np.int64], step: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See ``ExpectedDrop``."""
        return np.full(len(keys), self.before), np.full(len(keys), self.kept)


@dataclass(frozen=True)
class DrawnDrop:
    """Layer and gamma are drawn for each sample, from (seed, step, key): known before the step.

    The draws are those of ``megatron_focus.samplers.draws.layer_and_gamma``, which makes a generator for each sample. A
    step of thousands is planned on every reading rank, so here the generator (Philox 4x64, 10 rounds; J. K. Salmon and
    others, Parallel random numbers: as easy as 1, 2, 3, 2011) runs over all samples at once. Were it to differ, rows
    would be less even and nothing else.
    """

    sampler: TextSamplerConfig
    layers: int
    seed: int

    def __call__(self, keys: NDArray[np.int64], step: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See ``ExpectedDrop``."""
        layer, gamma = self.draws(keys, step)
        return layer / self.layers, kept_share(gamma)

    def draws(self, keys: NDArray[np.int64], step: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """int64 [n], layer before which each sample drops, and float64 [n], its gamma."""
        first, second = _philox(keys, self.seed, step)
        low, high = self.sampler.layer_range
        number = np.uint64(high - low + 1)
        # NumPy's bounded integers (Lemire): the upper half of a 32-bit number times the number of values.
        scaled = (first & _HALF) * number
        layer = (scaled >> _SHIFT).astype(np.int64) + low
        if low == high:
            second = first  # NumPy draws no number where there is no choice
        begin, end = self.sampler.gamma_range
        gamma = begin + (end - begin) * ((second >> np.uint64(11)).astype(np.float64) * 2.0**-53)
        # Lemire's method draws again where this remainder is small: once in hundreds of millions.
        for sample in np.flatnonzero((scaled & _HALF) < number).tolist():
            layer[sample], gamma[sample] = layer_and_gamma(self.sampler, int(keys[sample]), seed=self.seed, step=step)
        return layer, gamma


_HALF, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def _philox(keys: NDArray[np.int64], seed: int, step: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """uint64 [n] twice: the first two numbers of ``np.random.Philox(key=[seed, step], counter=[0, 0, 0, key])``."""
    zeros = np.zeros(len(keys), dtype=np.uint64)
    # NumPy counts up before it draws.
    counter = [zeros + np.uint64(1), zeros, zeros, keys.astype(np.uint64)]
    for number in range(10):
        (high0, low0), (high1, low1) = (
            _multiplied(counter[place], multiplier) for place, multiplier in zip((0, 2), _MULTIPLIERS, strict=True)
        )
        key0, key1 = (
            np.uint64((begin + number * add) % 2**64) for begin, add in zip((seed, step), _KEY_STEPS, strict=True)
        )
        counter = [high1 ^ counter[1] ^ key0, low1, high0 ^ counter[3] ^ key1, low0]
    return counter[0], counter[1]


def _multiplied(values: NDArray[np.uint64], multiplier: np.uint64) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Upper and lower 64 bits of the products, from four products of halves."""
    a, b = values >> _SHIFT, values & _HALF
    c, d = multiplier >> _SHIFT, multiplier & _HALF
    middle = (b * d >> _SHIFT) + (a * d & _HALF) + (b * c & _HALF)
    return a * c + (a * d >> _SHIFT) + (b * c >> _SHIFT) + (middle >> _SHIFT), values * multiplier
