"""A random subset of a prepared data set, without copying a shard: the paper's ablations train on such a one."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_pipeline.dataset.dataset_file import DATASET
from data_pipeline.dataset.manifest import SCHEMA, Manifest
from data_pipeline.preparation.left_out import LEFT_OUT
from data_pipeline.preparation.merge import MANIFEST, ROWS_PER_GROUP

_STREAM = 1 << 63
"""Second word of the Philox key, which is 0 for the order of samples: the two never use the same stream."""


def draw_subset(prepared: str | Path, out_dir: str | Path, *, samples: int, seed: int) -> dict[str, Any]:
    """Write a manifest of ``samples`` samples of ``prepared`` to the new folder ``out_dir``; returns ``dataset.json``.

    All subsets of that size are equally probable, and the same seed gives the same one. The order stays. The folder
    refers to the shards of ``prepared`` by a relative path, so the two are moved together.

    Raises:
        ValueError: ``prepared`` is not a finished data set or has fewer samples, or ``out_dir`` exists.
    """
    prepared, out_dir = Path(prepared), Path(out_dir).absolute()
    if out_dir.exists():
        raise ValueError(f"{out_dir}: exists already; choose another folder or remove it")
    manifest = Manifest.load(prepared)
    if not 0 < samples <= len(manifest):
        raise ValueError(f"{prepared}: has {len(manifest)} samples, so no subset of {samples}")
    drawn = pq.read_table(prepared / MANIFEST, schema=SCHEMA).take(pa.array(_draw(len(manifest), samples, seed)))
    aside = out_dir.with_name(f".{out_dir.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # left by a run that was killed
    aside.mkdir(parents=True)
    pq.write_table(drawn, aside / MANIFEST, compression="zstd", row_group_size=ROWS_PER_GROUP)
    (aside / LEFT_OUT).touch()
    info = _describe(manifest, drawn) | {
        "manifest_sha256": hashlib.sha256((aside / MANIFEST).read_bytes()).hexdigest(),
        "shard_folder": os.path.relpath(manifest.shard_folder, out_dir),
        "subset_of": {"manifest_sha256": manifest.hash, "samples": len(manifest), "seed": seed},
    }
    info["shard_bytes"] = info.pop("shard_bytes")  # the long one last
    (aside / DATASET).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    aside.rename(out_dir)
    return info


def _draw(n: int, samples: int, seed: int) -> NDArray[np.int64]:
    """int64 [samples], ascending. Those with the smallest of n raw Philox words, as in ``SampleOrder``."""
    words = np.random.Philox(key=[seed, _STREAM]).random_raw(n)
    return np.sort(np.argsort(words, kind="stable")[:samples])


def _describe(manifest: Manifest, drawn: pa.Table) -> dict[str, Any]:
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(drawn["source"]).to_pylist()}
    # How many the authors publish, were left out, renamed or changed is a matter of the whole set.
    whole: dict[str, Any] = {
        "published": None,
        "left_out": 0,
        "left_out_by_reason": {},
        "renamed": 0,
        "accepted_with_change": {},
    }
    sources = {name: {"samples": counts.get(name, 0), **whole} for name in manifest.info["sources"]}
    used = set(pc.unique(drawn["shard"]).to_pylist())
    return {
        "format_version": manifest.info["format_version"],
        "samples": len(drawn),
        **{column: pc.sum(drawn[column]).as_py() for column in ("images", "text_tokens", "loss_tokens")},
        "left_out": 0,
        "left_out_by_reason": {},
        "accepted_with_change": {},
        "sources": sources,
        "chat_template": manifest.info["chat_template"],
        "rendering_sha256": manifest.info["rendering_sha256"],
        "shard_bytes": {shard: size for shard, size in manifest.info["shard_bytes"].items() if shard in used},
    }
