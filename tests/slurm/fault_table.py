"""What the tests of faults saw, as the table of slurm/README.md."""

from dataclasses import dataclass, field

from tests.slurm.cluster import Job


@dataclass
class FaultTable:
    """Rows of the table, added as tests pass."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, fault: str, happened: str, *, at: int, job: Job, undisturbed: Job, lost: int | None = None) -> None:
        """A fault after step ``at`` of a job that went on from its newest checkpoint, or lost nothing."""
        equal = job.steps[max(job.steps)] == undisturbed.steps[max(undisturbed.steps)]
        if lost is None:
            # The first time it went on: Slurm may interrupt the next life once more (slurm/README.md).
            lost = at - (job.resumed_at[0] if job.resumed_at else 0)
        self.rows.append((fault, happened, f"{lost} (of {at})", "yes" if equal else "NO"))

    def markdown(self) -> str:
        """The table."""
        head = ("Fault", "What happened", "Steps lost", "Final loss equal")
        lines = [head, ("---",) * len(head), *self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)
