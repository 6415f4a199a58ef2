"""What the loader costs at the size of the whole mix: starting, resuming and planning with a million rows.

The rows are real ones: all of them name the samples of one small data set, so that any of them can be read. Everything
is measured in a process of its own, as its memory is part of the result:

    python -m data_pipeline.benchmark.epoch FOLDER
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data_pipeline.anyres import visual_token_count
from data_pipeline.benchmark.pictures import synthetic_photo
from data_pipeline.config import DataConfig, ImageGeometry
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import train_tokenizer
from data_pipeline.dataset.manifest import SCHEMA
from data_pipeline.loading.loader import StepLoader
from data_pipeline.loading.steps import LoaderState
from data_pipeline.preparation.prepare import prepare
from data_pipeline.sample import sample_key
from data_pipeline.sources.llava_json import LlavaJson

SIZES = ((640, 480), (480, 640), (500, 375), (336, 336), (1024, 768), (1700, 2200), (800, 600), (448, 1344))
"""Width and height of the pictures, in pixels: photographs, squares, pages, a tall chart."""

SAMPLES = 160
"""Samples of the small data set; every eighth has no picture."""

GLOBAL_BATCH_SIZE = 128
KEPT_RATIO = 0.45
"""Share of the visual tokens that the rows are packed for."""


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """Seconds, and bytes of memory on top of what the imported libraries take."""

    rows: int
    start: float
    """From nothing to the first batch."""
    resume: float
    """From a state in the middle of the third epoch to its batch."""
    plan: float
    """A whole epoch: order, packing, dealing."""
    sizes: float
    """To count the visual tokens of 100,000 different image sizes: comes on top where pictures differ that much."""
    memory: int
    """Peak of all of these together."""
    fill: float
    """Share of the rows' token budget that packing used."""


def measure_epoch(folder: Path, rows: int) -> EpochReport:
    """Write a data set of ``rows`` rows to ``folder`` and measure it in another process."""
    _write(folder, rows)
    done = subprocess.run(
        [sys.executable, "-m", "data_pipeline.benchmark.epoch", folder], stdout=subprocess.PIPE, text=True, check=True
    )
    return EpochReport(**json.loads(done.stdout.splitlines()[-1]))


def _write(folder: Path, rows: int) -> None:
    (folder / "images").mkdir(parents=True)
    random, records = np.random.default_rng(0), []
    for number, size in enumerate(SIZES):
        synthetic_photo(*size, seed=number).save(folder / "images" / f"{number}.jpg", quality=90)
    for number in range(SAMPLES):
        words = " ".join(["a word of the answer"] * int(random.lognormal(3.2, 0.9)))
        picture = {"image": f"{number % len(SIZES)}.jpg"} if number % 8 else {}
        question = "<image>\nWhat is it?" if picture else "What is it?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"It is {words}."}]
        records.append({"id": str(number), "conversations": turns} | picture)
    (folder / "data.json").write_text(json.dumps(records))
    tokenizer = train_tokenizer(["What is it? It is a word of the answer."] * 9, 400, folder / "tokenizer")
    source = LlavaJson(folder / "data.json", folder / "images", "mix")
    prepare([source], folder / "small", renderer=Renderer(tokenizer, "llama3"), progress=False)
    _repeat(folder / "small", folder / "large", rows)


def _repeat(small: Path, large: Path, rows: int) -> None:
    """A data set whose rows are those of another one many times, under new ids, spread over nine sources."""
    large.mkdir()
    table = pq.read_table(small / "manifest.parquet", schema=SCHEMA)
    with pq.ParquetWriter(large / "manifest.parquet", SCHEMA, compression="zstd") as writer:
        bar = tqdm(total=rows, unit="row", unit_scale=True, desc="writing a manifest")
        for begin in range(0, rows, 100_000):
            count = min(100_000, rows - begin)
            part = table.take(pa.array(np.arange(begin, begin + count) % len(table)))
            ids = [f"{number:07d}" for number in range(begin, begin + count)]
            sources = [f"set {number * 9 // rows}" for number in range(begin, begin + count)]
            keys = [sample_key(source, id) for source, id in zip(sources, ids, strict=True)]
            for name, values in (("id", ids), ("source", sources), ("key", keys)):
                place = SCHEMA.get_field_index(name)
                part = part.set_column(place, SCHEMA.field(place), pa.array(values, SCHEMA.field(place).type))
            writer.write_table(part)
            bar.update(count)
        bar.close()
    info = json.loads((small / "dataset.json").read_text())
    digest = hashlib.sha256((large / "manifest.parquet").read_bytes()).hexdigest()
    info |= {"samples": rows, "manifest_sha256": digest, "shard_folder": "../small"}
    (large / "dataset.json").write_text(json.dumps(info))


def _measure(folder: Path) -> EpochReport:
    before = _peak_memory()
    data = DataConfig(path=str(folder / "large"), tokenizer=str(folder / "tokenizer"), num_workers=0)
    started = time.perf_counter()
    loader = _loader(data, None)
    loader.next_step()
    start = time.perf_counter() - started
    rows = len(loader.manifest)
    state = LoaderState(
        epoch=2,
        position=rows // 3,
        order=loader.state.order,
        manifest_hash=loader.manifest.hash,
        kept_ratios=[KEPT_RATIO],
        decoder="cpu",
    )
    loader.close()
    del loader

    started = time.perf_counter()
    loader = _loader(data, state)
    loader.next_step()
    resume = time.perf_counter() - started

    planner, tokens, packed = loader.planner, 0, 0
    steps = rows // GLOBAL_BATCH_SIZE
    started = time.perf_counter()
    # From an epoch whose order is not known yet.
    for step in tqdm(range(steps), unit="step", desc="planning an epoch"):
        plan = planner.plan(5 * rows + step * GLOBAL_BATCH_SIZE, KEPT_RATIO)
        tokens += sum(plan.expected)
        packed += len(plan.rows)
    planned = time.perf_counter() - started

    random = np.random.default_rng(0)
    sizes = random.integers(100, 2000, (100_000, 2)).tolist()
    started = time.perf_counter()
    for height, width in sizes:
        visual_token_count(height, width, ImageGeometry())
    counted = time.perf_counter() - started
    return EpochReport(
        rows=rows,
        start=start,
        resume=resume,
        plan=planned,
        sizes=counted,
        memory=_peak_memory() - before,
        fill=tokens / (packed * data.max_sequence_length),
    )


def _loader(data: DataConfig, state: LoaderState | None) -> StepLoader:
    return StepLoader(
        data,
        ImageGeometry(),
        global_batch_size=GLOBAL_BATCH_SIZE,
        data_parallel_rank=3,
        data_parallel_size=64,
        state=state,
    )


def _peak_memory() -> int:
    # Not ru_maxrss, which begins with that of the parent process.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Measure a folder that ``measure_epoch`` wrote; the report is the last line, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(json.dumps(vars(_measure(parser.parse_args().folder))))


if __name__ == "__main__":
    main()
