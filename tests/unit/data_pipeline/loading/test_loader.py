import dataclasses
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_pipeline.anyres import visual_token_count
from data_pipeline.config import DataConfig, ImageGeometry
from data_pipeline.conversations.tokenizer import train_tokenizer
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.errors import SampleError
from data_pipeline.loading.loader import StepLoader
from data_pipeline.loading.steps import LoaderState
from data_pipeline.row import IGNORE_INDEX

BATCH = 7
BUDGET = 1500


@pytest.fixture
def config(prepared, tokenizer_folder):
    return DataConfig(
        path=str(prepared), tokenizer=str(tokenizer_folder), max_sequence_length=BUDGET, num_workers=0, seed=3
    )


@pytest.fixture
def make(config, small_geometry):
    """Makes loaders, and ends their processes with the test."""
    made = []

    def call(rank=0, size=1, state=None, batch=BATCH, **changes):
        loader = StepLoader(
            dataclasses.replace(config, **changes),
            small_geometry,
            global_batch_size=batch,
            data_parallel_rank=rank,
            data_parallel_size=size,
            state=state,
        )
        made.append(loader)
        return loader

    yield call
    for loader in made:
        loader.close()


def steps(loader, count):
    """(batch, state after it) of some steps; a model keeps 40 % of the visual tokens, a little more in every step."""
    result = []
    for _ in range(count):
        batch = loader.next_step()
        # From the place alone, so that every rank and a resumed run measure the same.
        kept = 400 + (loader.state.epoch * 24 + loader.state.position) % 50
        result.append((batch, loader.step_done(kept, 1000)))
    return result


def batches(loader, count):
    return [batch for batch, _ in steps(loader, count)]


def same_row(one, other):
    pairs = zip(one.tensors().values(), other.tensors().values(), strict=True)
    return one.sample_ids == other.sample_ids and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def same_steps(ones, others):
    assert len(ones) == len(others)
    for (one, state), (other, other_state) in zip(ones, others, strict=True):
        assert state == other_state and one.report == other.report
        assert len(one.rows) == len(other.rows) and all(map(same_row, one.rows, other.rows))
    return True


def ids(batch):
    return [id for row in batch.rows for id in row.sample_ids if id != "(filler)"]


def worst_case(row, geometry):
    visual = sum(visual_token_count(h, w, geometry) for h, w in row.image_sizes.tolist())
    return len(row.tokens) - len(row.grids) + visual


def test_every_sample_once_an_epoch_in_rows_within_budget(make, small_geometry):
    seen = Counter()
    for batch in batches(make(packing_estimate="baseline"), 24):  # 24 * 7 samples are 7 epochs of 24
        seen.update(ids(batch))
        assert batch.report.samples_by_source == {"llava": BATCH} and not batch.report.skipped
        assert all(worst_case(row, small_geometry) <= BUDGET for row in batch.rows)
    assert seen == {f"s{number}": 7 for number in range(24)}


def test_what_the_sampler_keeps_lets_more_samples_into_a_row(make, small_geometry):
    """Steps 0 to 4 are packed before anything is known; then ever fuller, never beyond the worst case."""
    learnt = batches(make(worst_case_factor=2.0, batch=24), 24)
    careful = batches(make(packing_estimate="baseline", batch=24), 24)
    assert [sorted(ids(batch)) for batch in learnt] == [sorted(ids(batch)) for batch in careful]
    rows, careful_rows = ([len(batch.rows) for batch in got] for got in (learnt, careful))
    assert rows[:5] == careful_rows[:5]
    assert sum(rows[12:]) <= 0.8 * sum(careful_rows[12:])
    fullest = max(worst_case(row, small_geometry) for batch in learnt for row in batch.rows)
    assert BUDGET < fullest <= 2 * BUDGET


def test_rows_are_well_formed(make, tokenizer, prepared):
    keys = dict(zip(Manifest.load(prepared).ids.to_pylist(), Manifest.load(prepared).keys.tolist(), strict=True))
    for batch in batches(make(), 4):
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
    manifest, loader = Manifest.load(prepared), make()
    for number, batch in enumerate(batches(loader, 5)):
        expected = [manifest.id(i) for i in loader.planner.order.take(number * BATCH, BATCH)]
        assert sorted(ids(batch)) == sorted(expected)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(make, workers):
    assert same_steps(steps(make(), 9), steps(make(num_workers=workers), 9))


def test_resume_is_bit_equal(make):
    """The state of any step gives the next ones: across the end of an epoch, with other workers, through JSON."""
    whole = steps(make(), 12)
    for done in (1, 3, 4, 9):
        stored = json.loads(json.dumps(dataclasses.asdict(whole[done - 1][1])))
        resumed = make(state=LoaderState(**stored), num_workers=2 if done == 3 else 0)
        assert same_steps(whole[done:], steps(resumed, 12 - done))


def test_state_is_small(make):
    assert len(json.dumps(dataclasses.asdict(steps(make(), 1)[0][1]))) < 500


@pytest.mark.parametrize("size", [2, 3, 16])
def test_ranks_share_the_rows_of_a_step(make, size):
    """Resumed with another number of ranks: same rows, dealt differently, and fillers where a rank has none."""
    state = steps(make(), 6)[-1][1]
    alone = steps(make(state=state), 3)
    ranks = [steps(make(rank=rank, size=size, state=state), 3) for rank in range(size)]
    for number, (whole, after) in enumerate(alone):
        shares = [rank[number][0] for rank in ranks]
        assert all(share.rows for share in shares) and all(rank[number][1] == after for rank in ranks)
        rows = [row for share in shares for row in share.rows if row.sample_ids != ["(filler)"]]
        assert len(rows) == len(whole.rows)
        for row in whole.rows:
            assert any(same_row(row, other) for other in rows)
        assert sum((share.report.samples_by_source for share in shares), Counter()) == whole.report.samples_by_source
        fillers = [row for share in shares for row in share.rows if row.sample_ids == ["(filler)"]]
        assert len(fillers) == max(0, size - len(whole.rows))
        assert all(row.loss_tokens == 0 and len(row.tiles) == 0 for row in fillers)


def test_global_batch_may_change_at_a_resume(make):
    state = steps(make(), 2)[-1][1]
    resumed = batches(make(state=state, batch=5), 2)
    following = sorted(ids(resumed[0]) + ids(resumed[1]))
    assert following == sorted(ids(batches(make(state=state, batch=10), 1)[0]))


def test_trainer_random_state_is_left_alone(make):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    steps(make(num_workers=1), 1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("workers", "expected"), [(1, 8), (6, 12)])
def test_what_is_read_ahead(make, workers, expected):
    """The rows of the next step, or two a worker, whatever the number of steps planned."""
    loader = make(num_workers=workers, prefetch_steps=20, batch=24, packing_estimate="baseline")
    for _ in range(3):
        assert len(loader.next_step().rows) == 8
        assert sum(len(step.pending) for step in loader._steps) == expected
        loader.step_done(400, 1000)


def test_tensors_do_not_keep_file_descriptors_open(make):
    loader = make(num_workers=1, batch=24)
    loader.next_step()
    loader.step_done(400, 1000)
    before = len(os.listdir("/proc/self/fd"))
    kept = [batch for batch, _ in steps(loader, 6)]
    assert len(os.listdir("/proc/self/fd")) <= before + 8 < before + sum(len(batch.rows) for batch in kept)


def test_workers_leave_signals_to_the_trainer(make):
    """A scheduler's warning goes to every process of a job; the trainer still gets the batches it asks for."""
    loader = make(num_workers=2)
    got = steps(loader, 1)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        # From another process, as the scheduler's are.
        subprocess.run(["kill", "-USR1", str(worker.pid)], check=True)
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        subprocess.run(["kill", "-INT", str(worker.pid)], check=True)
    got += steps(loader, 8)
    assert same_steps(got, steps(make(), 9))
    loader.close()
    assert not any(worker.is_alive() for worker in workers)


def test_trainer_can_end_a_worker(make):
    """What multiprocessing does at exit with workers that are left over, for instance after an exception."""
    steps(make(num_workers=1), 1)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(timeout=20)
    assert worker.exitcode == 0


def test_a_killed_worker_is_an_error_and_no_hang(make):
    loader = make(num_workers=1)
    steps(loader, 1)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(RuntimeError, match=r"a reading process died.*use fewer data\.num_workers"):
        steps(loader, 20)


def test_workers_end_with_a_killed_trainer(config, tmp_path):
    """After kill -9 nobody tells them."""
    script = tmp_path / "trainer.py"
    script.write_text(
        "import multiprocessing, os, signal\n"
        "from data_pipeline.config import DataConfig, ImageGeometry\n"
        "from data_pipeline.loading.loader import StepLoader\n"
        f"loader = StepLoader(DataConfig(path={config.path!r}, tokenizer={config.tokenizer!r}, num_workers=2),\n"
        "    ImageGeometry(), global_batch_size=2, data_parallel_rank=0, data_parallel_size=1)\n"
        "loader.next_step()\n"
        "print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    workers = [int(pid) for pid in ended.stdout.split()]
    assert len(workers) == 2, ended.stderr
    deadline = time.monotonic() + 15
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


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
    loader = make(path=str(undecodable), num_workers=workers)
    with pytest.raises(SampleError) as error:
        steps(loader, 4)
    expected = f"{undecodable}/shards/llava-000001.tar: sample 's9' of llava: image 0 of s9: not a readable"
    assert str(error.value).startswith(expected)
    loader.close()
    assert not multiprocessing.active_children()


def test_undecodable_sample_is_skipped_and_listed(make, undecodable):
    whole = batches(make(), 6)
    got = batches(make(path=str(undecodable), on_bad_sample="skip", num_workers=1), 6)
    skipped = [sample for batch in got for sample in batch.report.skipped]
    assert len(skipped) == sum(ids(batch).count("s9") for batch in whole) > 0
    assert {(s.id, s.source, s.reason) for s in skipped} == {("s9", "llava", "not an image")}
    assert "llava-000001.tar: sample 's9' of llava: image 0 of s9: not a readable" in skipped[0].message
    for before, after in zip(whole, got, strict=True):
        assert sorted(ids(after)) == sorted(id for id in ids(before) if id != "s9")
        assert after.report.skipped_by_reason == ({"not an image": 1} if "s9" in ids(before) else {})


def test_row_without_any_usable_sample_becomes_a_filler(make, undecodable):
    got = batches(make(path=str(undecodable), on_bad_sample="skip", batch=1), 24)
    assert sum(batch.rows[0].sample_ids == ["(filler)"] for batch in got) == 1


def test_a_shard_that_vanishes_while_training(make, damaged):
    """Found missing at the start it is refused; lost later, its samples are left out or stop the run, by its name."""
    skipping = make(path=str(damaged), on_bad_sample="skip", batch=24, num_workers=1)
    stopping = make(path=str(damaged), batch=24)
    shard = damaged / "shards" / "llava-000002.tar"
    shard.unlink()
    (batch,) = batches(skipping, 1)
    assert batch.report.skipped_by_reason == {"unreadable shard": 5}
    assert all("llava-000002.tar" in sample.message for sample in batch.report.skipped)
    assert len(ids(batch)) == 19
    with pytest.raises(SampleError, match=r"llava-000002\.tar: sample 's1\d' of llava: .*No such file"):
        stopping.next_step()
    with pytest.raises(ValueError, match=r"llava-000002\.tar: no such file, but the manifest lists it"):
        make(path=str(damaged), on_bad_sample="skip")


def test_too_long_samples(make, small_geometry, prepared):
    manifest = Manifest.load(prepared)
    lengths = manifest.text_only_tokens() + manifest.visual_tokens(small_geometry)
    budget = int(np.sort(lengths)[-3])
    with pytest.raises(ValueError) as error:
        make(max_sequence_length=budget)
    message = str(error.value)
    index = int(np.flatnonzero(lengths > budget)[0])
    assert (
        f"sample 's{index}' of llava: {lengths[index]} tokens, more than data.max_sequence_length={budget}" in message
    )
    assert "(2 such in all); data.on_bad_sample=skip leaves them out" in message
    for size in (1, 2):
        loaders = [make(rank, size, max_sequence_length=budget, on_bad_sample="skip", batch=24) for rank in range(size)]
        reports = [batches(loader, 1)[0].report for loader in loaders]
        skipped = [sample for report in reports for sample in report.skipped]
        assert Counter(sample.reason for sample in skipped) == {"too long": 2}
        assert sum((report.samples_by_source for report in reports), Counter()) == {"llava": 22}
    with pytest.raises(ValueError, match=r"no sample fits into data\.max_sequence_length=10 tokens"):
        make(max_sequence_length=10, on_bad_sample="skip")


def test_refusals_name_what_is_wrong(make, tmp_path):
    with pytest.raises(ValueError, match=r"data\.path and data\.tokenizer are needed, not None and"):
        make(path=None)
    with pytest.raises(ValueError, match=r"prepared with chat_template 'llama3', but data\.chat_template is 'plain'"):
        make(chat_template="plain")
    train_tokenizer(["some other text"], 300, tmp_path / "other")
    with pytest.raises(
        ValueError,
        match=r"dataset\.json: prepared with another tokenizer or chat template than data\.tokenizer=.*/other",
    ):
        make(tokenizer=str(tmp_path / "other"))
    state = steps(make(), 1)[0][1]
    with pytest.raises(
        ValueError, match=r"not the one of the checkpoint \(its manifest has SHA-256 \w+, the checkpoint's no"
    ):
        make(state=dataclasses.replace(state, manifest_hash="no"))
    with pytest.raises(
        ValueError, match=r"not the one of the checkpoint \(seed is 4, was 3; weights is {'llava': 0.5}, was {}\)"
    ):
        make(state=state, seed=4, source_weights={"llava": 0.5})
    with pytest.raises(ValueError, match="loader state: epoch 0, position 24 of 24 samples"):
        make(state=dataclasses.replace(state, position=24))


def test_samples_that_are_never_shown_may_be_too_long(make):
    with pytest.raises(ValueError, match="no source is left"):
        make(source_weights={"llava": 0}, max_sequence_length=10)


def test_pictures_larger_than_the_limit_are_refused_at_the_start(make, config, small_geometry):
    geometry = dataclasses.replace(small_geometry, max_image_pixels=50_000)
    with pytest.raises(ValueError, match=r"sample 's\d+' of llava: an image of \d+ pixels, more than model\.image"):
        StepLoader(config, geometry, global_batch_size=2, data_parallel_rank=0, data_parallel_size=1)


def test_another_decoder_is_said(make):
    state = dataclasses.replace(steps(make(), 1)[0][1], decoder="dali on cuda")
    with pytest.warns(UserWarning, match="images were decoded with dali on cuda so far, with cpu from now on"):
        make(state=state)


def test_paper_geometry(make, config):
    loader = StepLoader(
        dataclasses.replace(config, max_sequence_length=6144),
        ImageGeometry(),
        global_batch_size=2,
        data_parallel_rank=0,
        data_parallel_size=1,
    )
    assert loader.next_step().rows[0].tiles.shape[1:] == (3, 336, 336)
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_dali_gives_the_same_rows(make, workers):
    pytest.importorskip("nvidia.dali")
    expected, got = steps(make(), 8), steps(make(decoder="dali", num_workers=workers), 8)
    for (one, state), (other, other_state) in zip(expected, got, strict=True):
        assert dataclasses.replace(state, decoder="dali on cpu") == other_state
        for row, other_row in zip(one.rows, other.rows, strict=True):
            tensors, others = row.tensors(), other_row.tensors()
            tiles, other_tiles = tensors.pop("tiles"), others.pop("tiles")
            assert all(torch.equal(tensors[name], others[name]) for name in tensors)
            # DALI resizes another way: see decoding/test_drift.py.
            assert (tiles.float() - other_tiles.float()).abs().mean() < 2


def test_dali_leaves_out_what_cannot_be_decoded(make, undecodable):
    pytest.importorskip("nvidia.dali")
    expected = batches(make(path=str(undecodable), on_bad_sample="skip"), 6)
    got = batches(make(path=str(undecodable), on_bad_sample="skip", decoder="dali", num_workers=1), 6)
    for one, other in zip(expected, got, strict=True):
        assert ids(one) == ids(other) and one.report.skipped_by_reason == other.report.skipped_by_reason
    with pytest.raises(SampleError, match="sample 's9' of llava: image 0 of s9: not a readable"):
        steps(make(path=str(undecodable), decoder="dali"), 4)
