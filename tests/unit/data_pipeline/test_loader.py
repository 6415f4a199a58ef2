import dataclasses
import hashlib
import json
import multiprocessing
import os
import subprocess
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_pipeline.anyres import visual_token_count
from data_pipeline.config import DataConfig, ImageGeometry
from data_pipeline.loader import StepLoader
from data_pipeline.manifest import Manifest
from data_pipeline.ordering import step_indices
from data_pipeline.row import IGNORE_INDEX
from data_pipeline.steps import LoaderState
from data_pipeline.tokenizer import train_tokenizer

BATCH = 7


@pytest.fixture
def config(prepared, tokenizer_folder):
    return DataConfig(
        path=str(prepared), tokenizer=str(tokenizer_folder), max_sequence_length=1500, num_workers=0, seed=3
    )


@pytest.fixture
def make(config, small_geometry):
    def call(rank=0, size=1, state=None, batch=BATCH, **changes):
        return StepLoader(
            dataclasses.replace(config, **changes),
            small_geometry,
            global_batch_size=batch,
            data_parallel_rank=rank,
            data_parallel_size=size,
            state=state,
        )

    return call


def steps(loader, count):
    return list(islice(loader, count))


def same_row(one, other):
    pairs = zip(one.tensors().values(), other.tensors().values(), strict=True)
    return one.sample_ids == other.sample_ids and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def same_steps(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert one.state == other.state and one.report == other.report
        assert len(one.rows) == len(other.rows) and all(map(same_row, one.rows, other.rows))
    return True


def ids(batch):
    return [id for row in batch.rows for id in row.sample_ids if id != "(filler)"]


def test_every_sample_once_an_epoch_in_rows_within_budget(make, config, small_geometry):
    loader = make()
    seen = Counter()
    for batch in steps(loader, 24):  # 24 * 7 samples are 7 epochs of 24
        seen.update(ids(batch))
        assert batch.report.samples_by_source == {"llava": BATCH} and not batch.report.skipped
        for row in batch.rows:
            visual = sum(visual_token_count(h, w, small_geometry) for h, w in row.image_sizes.tolist())
            assert len(row.tokens) - len(row.grids) + visual <= config.max_sequence_length
    assert seen == {f"s{number}": 7 for number in range(24)}


def test_rows_are_well_formed(make, tokenizer, prepared):
    keys = dict(zip(Manifest.load(prepared).ids.to_pylist(), Manifest.load(prepared).keys.tolist(), strict=True))
    for batch in steps(make(), 4):
        for row in batch.rows:
            bounds = row.cu_seqlens.tolist()
            assert bounds[0] == 0 and bounds[-1] == len(row.tokens) == len(row.labels) == len(row.instruction)
            assert row.num_samples == len(row.sample_ids) == len(row.sample_keys)
            assert row.sample_keys.tolist() == [keys[id] for id in row.sample_ids]
            assert (row.tokens == tokenizer.image_token_id).sum() == len(row.grids) == len(row.image_sizes)
            assert len(row.tiles) == int((row.grids.prod(1) + 1).sum())
            assert row.tiles.shape[1:] == (3, 112, 112) and row.tiles.dtype == torch.uint8
            for begin, end in pairwise(bounds):
                assert row.tokens[begin] == tokenizer.bos_token_id and row.labels[end - 1] == IGNORE_INDEX
                learnt = begin + torch.nonzero(row.labels[begin:end] != IGNORE_INDEX).flatten()
                assert len(learnt) and torch.equal(row.labels[learnt], row.tokens[learnt + 1])


def test_step_holds_the_samples_that_the_order_says(make, prepared):
    manifest = Manifest.load(prepared)
    for number, batch in enumerate(steps(make(), 5)):
        expected = [manifest.id(i) for i in step_indices(3, 24, number * BATCH, BATCH)]
        assert sorted(ids(batch)) == sorted(expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(make, workers):
    assert same_steps(steps(make(), 6), steps(make(num_workers=workers), 6))


def test_resume_is_bit_equal(make):
    """The state of any step gives the next ones: across the end of an epoch, with other workers, through JSON."""
    whole = steps(make(), 9)
    for done in (1, 3, 4, 7):
        stored = json.loads(json.dumps(dataclasses.asdict(whole[done - 1].state)))
        resumed = make(state=LoaderState(**stored), num_workers=2 if done == 3 else 0)
        assert same_steps(whole[done:], steps(resumed, 9 - done))


@pytest.mark.parametrize("size", [2, 3, 16])
def test_ranks_share_the_rows_of_a_step(make, size):
    """Resumed with another number of ranks: same rows, dealt differently, and fillers where a rank has none."""
    state = steps(make(), 2)[-1].state
    alone = steps(make(state=state), 3)
    ranks = [steps(make(rank=rank, size=size, state=state), 3) for rank in range(size)]
    for number, whole in enumerate(alone):
        shares = [rank[number] for rank in ranks]
        assert all(share.rows and share.state == whole.state for share in shares)
        rows = [row for share in shares for row in share.rows if row.sample_ids != ["(filler)"]]
        assert len(rows) == len(whole.rows)
        for row in whole.rows:
            assert any(same_row(row, other) for other in rows)
        assert sum((share.report.samples_by_source for share in shares), Counter()) == whole.report.samples_by_source
        fillers = [row for share in shares for row in share.rows if row.sample_ids == ["(filler)"]]
        assert len(fillers) == max(0, size - len(whole.rows))
        assert all(row.loss_tokens == 0 and len(row.tiles) == 0 for row in fillers)


def test_global_batch_may_change_at_a_resume(make):
    state = steps(make(), 2)[-1].state
    resumed = steps(make(state=state, batch=5), 2)
    following = sorted(ids(resumed[0]) + ids(resumed[1]))
    assert following == sorted(ids(steps(make(state=state, batch=10), 1)[0]))


def test_trainer_random_state_is_left_alone(make):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    steps(make(num_workers=1), 1)
    assert torch.equal(before, torch.get_rng_state())


def test_workers_leave_signals_to_the_trainer(make):
    """A scheduler's warning goes to every process of a job; the trainer still gets the batches it asks for."""
    iterator = iter(make(num_workers=2))
    got = [next(iterator)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        # From another process, as the scheduler's are.
        subprocess.run(["kill", "-USR1", str(worker.pid)], check=True)
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        subprocess.run(["kill", "-INT", str(worker.pid)], check=True)
    got += [next(iterator) for _ in range(8)]
    assert same_steps(got, steps(make(), 9))
    del iterator
    for worker in workers:
        worker.join(timeout=20)
        assert not worker.is_alive()


def test_trainer_can_end_a_worker(make):
    """What multiprocessing does at exit with workers that are left over, for instance after an exception."""
    iterator = iter(make(num_workers=1))
    next(iterator)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(timeout=20)
    assert worker.exitcode == 0


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


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_sample_stops_the_trainer_with_shard_id_and_reason(make, undecodable, workers):
    with pytest.raises(ValueError) as error:
        steps(make(path=str(undecodable), num_workers=workers), 4)
    expected = f"{undecodable}/shard-000001.tar: sample 's9' of llava: image 0: not a readable"
    assert str(error.value).startswith(expected)
    assert not multiprocessing.active_children()  # also while the exception is still held


def test_undecodable_sample_is_skipped_and_listed(make, undecodable):
    whole = steps(make(), 6)
    batches = steps(make(path=str(undecodable), on_bad_sample="skip", num_workers=1), 6)
    skipped = [sample for batch in batches for sample in batch.report.skipped]
    assert len(skipped) == sum(ids(batch).count("s9") for batch in whole) > 0
    assert {(s.id, s.source, s.reason) for s in skipped} == {("s9", "llava", "unreadable")}
    assert "shard-000001.tar: sample 's9' of llava: image 0: not a readable" in skipped[0].message
    for before, after in zip(whole, batches, strict=True):
        assert sorted(ids(after)) == sorted(id for id in ids(before) if id != "s9")
        assert after.report.skipped_by_reason == ({"unreadable": 1} if "s9" in ids(before) else {})


def test_row_without_any_usable_sample_becomes_a_filler(make, undecodable):
    batches = steps(make(path=str(undecodable), on_bad_sample="skip", batch=1), 24)
    assert sum(batch.rows[0].sample_ids == ["(filler)"] for batch in batches) == 1


def test_too_long_samples(make, config, small_geometry, prepared):
    lengths = Manifest.load(prepared).predicted_lengths(small_geometry)
    budget = int(np.sort(lengths)[-3])
    with pytest.raises(ValueError) as error:
        make(max_sequence_length=budget)
    message = str(error.value)
    index = int(np.flatnonzero(lengths > budget)[0])
    assert (
        f"sample 's{index}' of llava: {lengths[index]} tokens, more than data.max_sequence_length={budget}" in message
    )
    assert "so are 1 others" in message
    for size in (1, 2):
        loaders = [make(rank, size, max_sequence_length=budget, on_bad_sample="skip", batch=24) for rank in range(size)]
        reports = [steps(loader, 1)[0].report for loader in loaders]
        skipped = [sample for report in reports for sample in report.skipped]
        assert Counter(sample.reason for sample in skipped) == {"too long": 2}
        assert sum((report.samples_by_source for report in reports), Counter()) == {"llava": 22}
    with pytest.raises(ValueError, match=r"no sample fits into data\.max_sequence_length=10 tokens"):
        make(max_sequence_length=10, on_bad_sample="skip")


def test_refusals_name_what_is_wrong(make, tmp_path):
    with pytest.raises(ValueError, match=r"data\.path and data\.tokenizer are needed, not None and"):
        make(path=None)
    with pytest.raises(ValueError, match=r"data\.on_bad_sample: 'ignore' is not one of error, skip"):
        make(on_bad_sample="ignore")
    with pytest.raises(ValueError, match=r"prepared with chat_template 'llama3', but data\.chat_template is 'plain'"):
        make(chat_template="plain")
    train_tokenizer(["some other text"], 300, tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"dataset\.json: prepared with another tokenizer than data\.tokenizer=.*/other"
    ):
        make(tokenizer=str(tmp_path / "other"))
    state = steps(make(), 1)[0].state
    with pytest.raises(
        ValueError, match=r"not the one of the checkpoint \(its manifest has SHA-256 \w+, the checkpoint's no"
    ):
        make(state=dataclasses.replace(state, manifest_hash="no"))
    with pytest.raises(ValueError, match=r"data\.seed: is 4, but the checkpoint's order was made with 3"):
        make(state=state, seed=4)
    with pytest.raises(ValueError, match="loader state: epoch 0, position 24 of 24 samples"):
        make(state=dataclasses.replace(state, position=24))


def test_paper_geometry(make, config):
    loader = StepLoader(
        dataclasses.replace(config, max_sequence_length=6144),
        ImageGeometry(),
        global_batch_size=2,
        data_parallel_rank=0,
        data_parallel_size=1,
    )
    assert steps(loader, 1)[0].rows[0].tiles.shape[1:] == (3, 336, 336)
