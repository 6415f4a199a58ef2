"""The progress bar of a preparation: shards, samples, samples per second, time left, samples left out."""

import sys
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from data_pipeline.preparation.part import PartSummary
from data_pipeline.preparation.plan import PlannedShard


class PreparationProgress(tqdm):
    """Counts samples; the shards and the samples left out stand behind.

    Args:
        shards: those of this call.
        complete: summaries of shards that are complete already, by name.
        show: False for silence.
    """

    monitor_interval = 0  # no thread, as this process is going to fork

    def __init__(self, shards: Sequence[PlannedShard], complete: Mapping[str, PartSummary], show: bool):
        done = [shard for shard in shards if shard.name in complete]
        self._shards, self._shards_done = len(shards), len(done)
        self._left_out = sum(len(complete[shard.name].left_out) for shard in done)
        super().__init__(
            total=sum(shard.end - shard.begin for shard in shards),
            initial=sum(shard.end - shard.begin for shard in done),
            desc="preparing",
            unit="sample",
            smoothing=0,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,  # in a log file a line now and then is enough
            disable=not show,
        )
        self._describe()

    def sample(self, left_out: bool) -> None:
        """One sample more."""
        self._left_out += left_out
        self._describe()
        self.update()

    def shard(self) -> None:
        """One shard more."""
        self._shards_done += 1
        self._describe()

    def _describe(self) -> None:
        self.set_postfix_str(f"{self._shards_done}/{self._shards} shards, {self._left_out} left out", refresh=False)
