"""The part file of a shard: its manifest rows and the samples left out, written when the shard is complete."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.dataset.manifest import SCHEMA
from data_pipeline.preparation.plan import PlannedShard
from data_pipeline.preparation.written_aside import written_aside
from data_pipeline.sample import BadSample

PARTS = "parts"
"""Folder, in the data set's, of the part files and of all files under way; removed when the data set is finished."""


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """What the footer of a part file says."""

    samples: int
    shard_bytes: int
    """Size of the tar; 0 where no sample was left to write, and then there is no tar."""
    left_out: list[BadSample]
    changes: dict[str, int]
    """How many samples were accepted with each kind of change."""


def part_file(folder: Path, shard: PlannedShard) -> Path:
    """Where the part file of a shard is."""
    return folder / PARTS / f"{shard.name}.parquet"


def write_part(
    folder: Path,
    shard: PlannedShard,
    rows: list[dict[str, Any]],
    shard_bytes: int,
    left_out: Sequence[BadSample],
    changes: Mapping[str, int],
) -> None:
    """Write the part file; from now on the shard counts as complete."""
    summary = {"shard_bytes": shard_bytes, "left_out": [asdict(sample) for sample in left_out], "changes": changes}
    schema = SCHEMA.with_metadata({"summary": json.dumps(summary)})
    file = part_file(folder, shard)
    with written_aside(file, file.parent) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), aside, compression="zstd")


def read_summary(folder: Path, shard: PlannedShard) -> PartSummary | None:
    """The summary of a complete shard; None where it is not complete: no part file, or not the tar it tells of."""
    try:
        metadata = pq.read_metadata(part_file(folder, shard))
    except FileNotFoundError:
        return None
    stored = json.loads(metadata.schema.to_arrow_schema().metadata[b"summary"])
    left_out = [BadSample(**sample) for sample in stored["left_out"]]
    summary = PartSummary(
        samples=metadata.num_rows, shard_bytes=stored["shard_bytes"], left_out=left_out, changes=stored["changes"]
    )
    return summary if _tar_size(folder / shard.tar) == summary.shard_bytes else None


def _tar_size(tar: Path) -> int:
    try:
        return tar.stat().st_size
    except FileNotFoundError:
        return 0
