"""Makes a data set of complete shards: one manifest in the order of the plan, ``left_out.jsonl``, ``dataset.json``."""

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.dataset.dataset_file import DATASET, FORMAT_VERSION
from data_pipeline.dataset.manifest import SCHEMA
from data_pipeline.preparation.left_out import LEFT_OUT, LeftOutTally
from data_pipeline.preparation.part import PARTS, part_file, read_summary
from data_pipeline.preparation.plan import PlannedShard
from data_pipeline.preparation.written_aside import written_aside
from data_pipeline.sources.base import Source

MANIFEST = "manifest.parquet"

ROWS_PER_GROUP = 1 << 16
"""Rows of the manifest held in memory at a time; also its row groups."""


def merge_shards(
    folder: Path,
    shards: Sequence[PlannedShard],
    sources: Sequence[Source],
    settings: dict[str, Any],
    tally: LeftOutTally,
) -> dict[str, Any]:
    """Write the three files, ``dataset.json`` last, and return what it holds.

    The content depends on the part files alone and each file is renamed into its place, so several processes may do
    this at the same time.

    Args:
        folder: of the data set.
        shards: all of the plan.
        sources: as planned.
        settings: see ``describe_settings``.
        tally: a new one.

    Raises:
        FileNotFoundError: a part file is missing; ``dataset.json`` is there then if another process was first.
        ValueError: not one sample is left.
        TooManyLeftOut: as ``tally`` says.
    """
    shard_bytes: dict[str, int] = {}
    changes: list[Counter[str]] = [Counter() for _ in sources]
    totals = dict.fromkeys(["samples", "images", "text_tokens", "loss_tokens"], 0)
    with (
        written_aside(folder / LEFT_OUT, folder / PARTS) as left_out_aside,
        written_aside(folder / MANIFEST, folder / PARTS) as manifest_aside,
    ):
        with (
            open(left_out_aside, "w", encoding="utf-8") as left_out,
            pq.ParquetWriter(manifest_aside, SCHEMA, compression="zstd") as manifest,
        ):
            for rows in _row_groups(_part_tables(folder, shards, tally, shard_bytes, changes, left_out)):
                manifest.write_table(rows, row_group_size=len(rows))
                totals["samples"] += len(rows)
                for column in ("images", "text_tokens", "loss_tokens"):
                    totals[column] += pc.sum(rows[column]).as_py()
        if not totals["samples"]:
            raise ValueError(f"{folder}: no sample to write; left out: {tally.by_reason()}")
        with open(manifest_aside, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    info = {
        "format_version": FORMAT_VERSION,
        **totals,
        "left_out": tally.total,
        "left_out_by_reason": tally.by_reason(),
        "accepted_with_change": dict(sum(changes, Counter()).most_common()),
        "sources": {
            source.name: _source_counts(source, tally, changed)
            for source, changed in zip(sources, changes, strict=True)
        },
        "chat_template": settings["chat_template"],
        "rendering_sha256": settings["rendering_sha256"],
        "manifest_sha256": digest,
        "shard_folder": ".",
        "settings": settings,
        "shard_bytes": shard_bytes,
    }
    with written_aside(folder / DATASET, folder / PARTS) as aside:
        aside.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return info


def _part_tables(
    folder: Path,
    shards: Sequence[PlannedShard],
    tally: LeftOutTally,
    shard_bytes: dict[str, int],
    changes: Sequence[Counter[str]],
    left_out: TextIO,
) -> Iterator[pa.Table]:
    """The rows of each part in turn; what its footer tells is added to the other arguments."""
    for shard in shards:
        summary = read_summary(folder, shard)
        if summary is None:
            raise FileNotFoundError(errno.ENOENT, "the part or its shard is missing", str(part_file(folder, shard)))
        for sample in summary.left_out:
            tally.add(sample)
            left_out.write(json.dumps(asdict(sample)) + "\n")
        changes[shard.source].update(summary.changes)
        if summary.samples:
            shard_bytes[shard.tar] = summary.shard_bytes
            yield pq.read_table(part_file(folder, shard), schema=SCHEMA)


def _row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in larger tables."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(len(table) for table in held) >= ROWS_PER_GROUP:
            yield pa.concat_tables(held)
            held.clear()
    if held:
        yield pa.concat_tables(held)


def _source_counts(source: Source, tally: LeftOutTally, changes: Counter[str]) -> dict[str, Any]:
    reasons = tally.reasons[source.name]
    return {
        "samples": len(source) - reasons.total(),
        "published": source.published,
        "left_out": reasons.total(),
        "left_out_by_reason": dict(reasons.most_common()),
        "renamed": source.renamed,
        "accepted_with_change": dict(changes.most_common()),
    }
