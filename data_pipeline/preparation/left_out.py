"""Counts the samples left out, by source and reason, and stops where they are too many."""

from collections import Counter
from collections.abc import Mapping

from data_pipeline.sample import BadSample

LEFT_OUT = "left_out.jsonl"
"""Lists the samples that were left out, with reasons."""

ON_BAD_SAMPLE = ("error", "skip")
"""What to do about a sample that cannot be used: stop, or count it, list it and go on."""


class TooManyLeftOut(ValueError):
    """More samples of ``source`` cannot be used than may be left out; the message tells the most frequent reasons."""

    def __init__(self, source: str, message: str):
        super().__init__(message)
        self.source = source


class LeftOutTally:
    """Samples left out of each source.

    Args:
        samples: number of samples of each source, good and bad.
        max_share: share of a source's samples that may be left out.
    """

    def __init__(self, samples: Mapping[str, int], max_share: float):
        self.samples, self.max_share = samples, max_share
        self.reasons: dict[str, Counter[str]] = {source: Counter() for source in samples}
        """For each source, how many were left out for each reason."""
        self._example: dict[tuple[str, str], str] = {}

    @property
    def total(self) -> int:
        """Samples left out of all sources."""
        return sum(counter.total() for counter in self.reasons.values())

    def by_reason(self) -> dict[str, int]:
        """Samples left out of all sources for each reason, the most frequent first."""
        return dict(sum(self.reasons.values(), Counter()).most_common())

    def add(self, sample: BadSample) -> None:
        """Count one more.

        Raises:
            TooManyLeftOut: more than ``max_share`` of its source's samples are left out now.
        """
        counter = self.reasons[sample.source]
        counter[sample.reason] += 1
        self._example.setdefault((sample.source, sample.reason), sample.message)
        if counter.total() > self.max_share * self.samples[sample.source]:
            raise TooManyLeftOut(sample.source, self._explain(sample.source))

    def _explain(self, source: str) -> str:
        counter = self.reasons[source]
        reasons = "".join(
            f"\n  {count} x {reason}, e.g. {self._example[source, reason]}" for reason, count in counter.most_common(3)
        )
        return (
            f"source {source}: {counter.total()} of {self.samples[source]} samples cannot be used, more than the share "
            f"of {self.max_share:g} that may be left out; the most frequent reasons so far:{reasons}\n"
            f"Repair the files and run again: of {source} the shards that lack samples are written anew, no other"
        )
