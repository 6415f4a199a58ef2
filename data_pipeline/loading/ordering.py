"""The order of samples: a function of its settings alone, so it can be resumed anywhere on any number of ranks.

Shapes: n samples of the data set, m samples of an epoch.
"""

from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHUFFLES = ("samples", "shards")
"""What a pass over a source shuffles. ``shards`` leaves the samples of a shard together."""

_PASS, _PLACE, _WINDOW = range(3)
"""What a random stream is for."""


@dataclass(frozen=True, kw_only=True)
class OrderSettings:
    """What decides the order, beside the data set."""

    seed: int
    weights: dict[str, float]
    """For some sources, how often an epoch shows each of their samples; 1 for the others."""
    shuffle: str
    """One of ``SHUFFLES``."""
    window: int
    """Places by which a sample may be moved to mix neighbouring blocks and sources; 0 leaves it where it is."""

    def changes(self, other: dict[str, Any]) -> list[str]:
        """For messages: the settings in which ``other``, a dictionary of the same fields, differs."""
        return [
            f"{key} is {value}, was {other.get(key)}" for key, value in asdict(self).items() if value != other.get(key)
        ]


class SampleOrder:
    """The endless order of samples: one epoch after another, each with the same number of samples.

    A source of weight w gives an epoch round(w n) of its n samples (at least one, if w is not 0). It is read pass after
    pass, each pass in an order of its own, and every epoch goes on where the last one stopped: with a weight of 0.5 two
    epochs show every sample once, with 2.5 each sample is seen two or three times in each. Within an epoch the samples
    of every source are spread evenly, so each stretch of it has the mix of the whole.

    Where shards are shuffled, the samples of one stay close in the order: a shard that comes from far away is read once
    and not a thousand times. The window then mixes neighbouring shards.

    Args:
        source: int32 [n], the source of each sample.
        names: the sources' names.
        shard: int32 [n], the shard of each sample; a shard has samples of one source.
        settings: see there.

    Raises:
        ValueError: a weight names no source of the data set, is negative, or all are 0.
    """

    def __init__(self, source: NDArray[np.int32], names: list[str], shard: NDArray[np.int32], settings: OrderSettings):
        assert settings.seed >= 0 and settings.shuffle in SHUFFLES and settings.window >= 0
        for name, weight in settings.weights.items():
            if name not in names:
                raise ValueError(f"data.source_weights: no source {name!r} in the data set, only {', '.join(names)}")
            if not weight >= 0:
                raise ValueError(f"data.source_weights.{name}: {weight} is not 0 or more")
        self.settings = settings
        by_source = np.argsort(source, kind="stable")
        self._members = np.split(by_source, np.cumsum(np.bincount(source, minlength=len(names)))[:-1])
        self._take = [
            _share(settings.weights.get(name, 1.0), len(members))
            for name, members in zip(names, self._members, strict=True)
        ]
        self.samples_per_epoch = sum(self._take)
        if self.samples_per_epoch == 0:
            raise ValueError("data.source_weights: no source is left, all weights are 0")
        self._shard = shard
        # A step may touch the end of one epoch and the beginning of the next.
        self._epochs: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    def shown(self) -> NDArray[np.bool_]:
        """bool [n], whether a sample is ever shown: those of sources with weight 0 are not."""
        shown = np.zeros(sum(map(len, self._members)), dtype=np.bool_)
        for members, take in zip(self._members, self._take, strict=True):
            shown[members] = take > 0
        return shown

    def epoch(self, number: int) -> NDArray[np.int64]:
        """int64 [m], indices into the data set, read-only."""
        assert number >= 0
        if number not in self._epochs:
            if len(self._epochs) == 2:
                self._epochs.popitem(last=False)
            self._epochs[number] = self._make(number)
        return self._epochs[number]

    def take(self, begin: int, count: int) -> NDArray[np.int64]:
        """int64 [count], the samples at places ``begin`` to ``begin + count`` of the endless order.

        A step that reaches the end of an epoch goes on in the next one: nothing is lost or repeated.
        """
        assert begin >= 0
        parts = [np.empty(0, dtype=np.int64)]
        while count > 0:
            number, position = divmod(begin, self.samples_per_epoch)
            part = self.epoch(number)[position : position + count]
            parts.append(part)
            begin, count = begin + len(part), count - len(part)
        return np.concatenate(parts)

    def _make(self, number: int) -> NDArray[np.int64]:
        chosen, places = [], []
        for source, take in enumerate(self._take):
            if take == 0:
                continue
            chosen.append(self._from_source(source, number * take, take))
            jitter = self._random(_PLACE, number, source, take)
            places.append((np.arange(take) + jitter) / take)
        order = np.concatenate(chosen)
        # Evenly spread first, then moved by up to a window: in units of places.
        place = np.argsort(np.argsort(np.concatenate(places), kind="stable"), kind="stable")
        moved = place + self.settings.window * self._random(_WINDOW, number, 0, len(order))
        order = order[np.argsort(moved, kind="stable")]
        order.flags.writeable = False
        return order

    def _from_source(self, source: int, begin: int, count: int) -> NDArray[np.int64]:
        """``count`` samples of the endless passes over a source, from place ``begin``."""
        size, parts = len(self._members[source]), []
        while count > 0:
            number, position = divmod(begin, size)
            part = self._pass(source, number)[position : position + count]
            parts.append(part)
            begin, count = begin + len(part), count - len(part)
        return np.concatenate(parts)

    def _pass(self, source: int, number: int) -> NDArray[np.int64]:
        members = self._members[source]
        if self.settings.shuffle == "samples":
            return members[np.argsort(self._random(_PASS, number, source, len(members)), kind="stable")]
        shards, shard_of = np.unique(self._shard[members], return_inverse=True)
        place = np.argsort(np.argsort(self._random(_PASS, number, source, len(shards)), kind="stable"), kind="stable")
        return members[np.argsort(place[shard_of], kind="stable")]

    def _random(self, purpose: int, number: int, source: int, count: int) -> NDArray[np.float64]:
        """float64 [count] in [0, 1).

        Raw Philox output, whose stream NumPy keeps stable between versions (``Generator``'s it does not), so a run
        resumed in a newer environment sees the same order. Each purpose, epoch or pass, and source counts in a range of
        its own.
        """
        stream = np.random.Philox(key=[self.settings.seed, 0], counter=[0, number, source, purpose])
        return (stream.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _share(weight: float, size: int) -> int:
    return max(1, round(weight * size)) if weight > 0 and size > 0 else 0
