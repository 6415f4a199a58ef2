"""What the loader gives for a step, and what it takes to continue after it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.row import PackedRow


@dataclass(frozen=True, kw_only=True)
class LoaderState:
    """Where the next step begins. The same for every number of workers and of data-parallel ranks."""

    epoch: int
    """Counted from 0."""
    position: int
    """Samples of this epoch that were already given out."""
    order: dict[str, Any]
    """The settings of the order, see ``OrderSettings``."""
    manifest_hash: str
    """Identity of the data set."""
    kept_ratios: list[float]
    """With what the next steps are packed, see ``KeptEstimate``."""
    decoder: str
    """How images were decoded."""


@dataclass(frozen=True, kw_only=True)
class SkippedSample:
    """A sample that was left out of its step (``on_bad_sample: skip``)."""

    id: str
    source: str
    reason: str
    """``too long``, or what ``SampleError`` says."""
    message: str
    """Names shard, sample and what is wrong."""


@dataclass(kw_only=True)
class StepReport:
    """What became of the samples of a step. The reports of all data-parallel ranks add up to the whole step."""

    samples_by_source: Counter[str] = field(default_factory=Counter)
    """Samples in the rows, by data set."""
    skipped: list[SkippedSample] = field(default_factory=list)

    @property
    def skipped_by_reason(self) -> Counter[str]:
        """Number of samples left out, by reason."""
        return Counter(sample.reason for sample in self.skipped)


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One step's share of a data-parallel rank."""

    rows: list[PackedRow]
    """At least one; each is a microbatch. Ranks may have different numbers of rows."""
    report: StepReport
    wait_seconds: float
    """How long the trainer waited for it."""
