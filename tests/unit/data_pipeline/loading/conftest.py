import dataclasses
import hashlib
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.loading.loader import StepLoader
from tests.unit.data_pipeline.loading.loader_steps import (
    BATCH,
    BUDGET,
)


@pytest.fixture
def config(prepared, tokenizer_folder):
    return DataConfig(
        path=str(prepared), tokenizer=str(tokenizer_folder), max_sequence_length=BUDGET, num_workers=0, seed=3
    )


@pytest.fixture
def make(config, small_geometry):
    """Makes loaders, and ends their processes with the test."""
    made = []

    def call(rank=0, size=1, state=None, batch=BATCH, global_views=True, **changes):
        loader = StepLoader(
            dataclasses.replace(config, **changes),
            small_geometry,
            global_batch_size=batch,
            data_parallel_rank=rank,
            data_parallel_size=size,
            state=state,
            global_views=global_views,
        )
        made.append(loader)
        return loader

    yield call
    for loader in made:
        loader.close()


@pytest.fixture
def undecodable(damaged):
    """The data set with s9's picture replaced by zeros, as if it had been stored so: only decoding can tell."""
    manifest = Manifest.load(damaged)
    index = manifest.ids.to_pylist().index("s9")
    shard = damaged / manifest.shard_names[manifest.shard[index]]
    os.chmod(shard, 0o644)
    image = int(manifest.first_image[index])
    with open(shard, "r+b") as file:
        file.seek(int(manifest.json_offset[index]))
        text = file.read(int(manifest.json_size[index]))
        size = int(manifest.image_size[image])
        file.seek(int(manifest.image_offset[image]))
        file.write(bytes(size))
    table = pq.read_table(damaged / "manifest.parquet")
    hashes = table["sha256"].to_pylist()
    hashes[index] = hashlib.sha256(text + bytes(size)).digest()
    place = table.schema.get_field_index("sha256")
    table = table.set_column(place, table.schema.field(place), pa.array(hashes, pa.binary(32)))
    pq.write_table(table, damaged / "manifest.parquet")
    info = json.loads((damaged / "dataset.json").read_text())
    info["manifest_sha256"] = hashlib.sha256((damaged / "manifest.parquet").read_bytes()).hexdigest()
    (damaged / "dataset.json").write_text(json.dumps(info))
    return damaged
