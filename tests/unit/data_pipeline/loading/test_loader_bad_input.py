import dataclasses
import multiprocessing
from collections import Counter

import numpy as np
import pytest

from data_pipeline.conversations.tokenizer import train_tokenizer
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.errors import SampleError
from data_pipeline.loading.loader import StepLoader
from tests.unit.data_pipeline.loading.loader_steps import (
    batches,
    ids,
    steps,
)


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
    assert "(2 unusable samples in all); data.on_bad_sample=skip leaves them out" in message
    for size in (1, 2):
        loaders = [make(rank, size, max_sequence_length=budget, on_bad_sample="skip", batch=24) for rank in range(size)]
        reports = [batches(loader, 1)[0].report for loader in loaders]
        skipped = [sample for report in reports for sample in report.skipped]
        assert Counter(sample.reason for sample in skipped) == {"too long": 2}
        assert sum((report.samples_by_source for report in reports), Counter()) == {"llava": 22}
    with pytest.raises(
        ValueError, match=r"no sample can be used; the first: .* more than data\.max_sequence_length=10"
    ):
        make(max_sequence_length=10, on_bad_sample="skip")


def test_a_picture_that_would_have_no_token_is_named_at_the_start_or_counted(make, prepared, monkeypatch):
    """7 x 900 pixels: no cell of the tiles shows it, and the model does not read the global view."""
    load = Manifest.load

    def with_a_ribbon(folder):
        manifest = load(folder)
        image = int(manifest.first_image[sample])
        heights, widths = manifest.heights.copy(), manifest.widths.copy()
        heights[image], widths[image] = 7, 900
        return dataclasses.replace(manifest, heights=heights, widths=widths)

    monkeypatch.setattr(Manifest, "load", with_a_ribbon)
    sample = int(np.flatnonzero(np.diff(load(prepared).first_image))[3])
    name = load(prepared).id(sample)
    with pytest.raises(ValueError, match=rf"sample '{name}' of llava: an image too elongated .*global_view=drop: use"):
        make(global_views=False)
    assert make().planner.usable.all()
    loader = make(global_views=False, on_bad_sample="skip", batch=24)
    (left_out,) = loader.planner.plan(0, 1.0).unusable
    skipped = loader.planner.unusable(left_out)
    assert (skipped.id, skipped.reason) == (name, "no visual token")


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
