"""Sample folders of the sets that come as parquet files with an image column."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.conversations.conversation import IMAGE_TOKEN
from data_pipeline.sources.prompts import turns
from examples.sample_sets.pictures import draw_page, draw_scene, encode

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
"""Hugging Face's image feature."""
TURNS = pa.list_(pa.struct({"from": pa.string(), "value": pa.string()}))


def write_synthdog_en(folder: Path, random: Random) -> None:
    """Two training files and a validation file, which is not used."""
    schema = pa.schema({"image": IMAGE, "ground_truth": pa.string()})
    for part, file in enumerate(["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"]):
        rows = []
        for number in range(4):
            page, lines = draw_page(random, 400 + 100 * number, 600 - 60 * part, lines=5)
            truth = {"gt_parse": {"text_sequence": " ".join(lines)}, "meta": {"version": "1.0"}}
            image = {"bytes": encode(page, ".jpg"), "path": f"image_{number}.jpg"}
            rows.append({"image": image, "ground_truth": json.dumps(truth)})
        _write(folder / f"data/{file}.parquet", rows, schema)


def write_parquet(folder: Path, random: Random) -> None:
    """Conversations with one image or none, in several row groups."""
    schema = pa.schema({"id": pa.string(), "image": IMAGE, "conversations": TURNS})
    rows: list[dict[str, Any]] = []
    for number in range(8):
        if number == 5:
            rows.append({"id": "text", "image": None, "conversations": turns("Say good morning.", "Good morning!")})
            continue
        scene = draw_scene(random, 240 + 60 * number, 320)
        image = {"bytes": encode(scene.image, ".png"), "path": None}
        talk = turns(f"{IMAGE_TOKEN}\nDescribe the shapes.", scene.caption)
        rows.append({"id": f"scene_{number}", "image": image, "conversations": talk})
    _write(folder / "train-00000-of-00001.parquet", rows, schema)


def _write(file: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=3)
