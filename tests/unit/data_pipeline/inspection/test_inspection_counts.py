"""Counts and histograms against what tarfile, Pillow, transformers and plain loops find in the shards."""

import io
import json
import math
import tarfile
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from data_pipeline.anyres import hf_grid_pinpoints
from data_pipeline.config import DataConfig
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.inspection.choice import choose_samples
from data_pipeline.inspection.counts import SampleLengths, count_sources, total_counts
from data_pipeline.inspection.histograms import (
    count_grids,
    linear_histogram,
    log_histogram,
    split_by_source,
)
from data_pipeline.inspection.row_forecast import forecast_rows
from data_pipeline.inspection.tables import changed_lines, forecast_line, left_out_lines, source_table, summary_line
from data_pipeline.loading.planning import StepPlanner

KEPT = 0.39


@pytest.fixture(scope="module")
def stored(two_sources):
    """For each source, by sample: its turns and its images' sizes (width, height), read with other programs."""
    samples = defaultdict(dict)
    for shard in sorted((two_sources / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
        for name, data in members.items():
            if name.endswith(".json"):
                content = json.loads(data)
                stem = name.removesuffix("json")
                images = [value for key, value in sorted(members.items()) if key.startswith(stem) and key != name]
                sizes = [Image.open(io.BytesIO(image)).size for image in images]
                samples[content["source"]][content["id"]] = (content["turns"], sizes)
    return samples


def messages(turns):
    return [{"role": turn["role"], "content": turn["text"]} for turn in turns]


def test_counts(two_sources, stored, small_geometry, tokenizer):
    manifest = Manifest.load(two_sources)
    counts = count_sources(manifest, SampleLengths.of(manifest, small_geometry, KEPT))
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 112},
            crop_size={"height": 112, "width": 112},
            image_grid_pinpoints=hf_grid_pinpoints(small_geometry),
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    assert [count.name for count in counts] == ["llava", "small"]
    for count in counts:
        samples = stored[count.name].values()
        assert count.samples == len(samples)
        assert count.images == sum(len(sizes) for _, sizes in samples)
        visual = [
            processor._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in sizes])["num_image_tokens"]
            for _, sizes in samples
            if sizes
        ]
        assert count.visual_tokens == sum(map(sum, visual))
        assert count.kept_tokens == sum(math.ceil(sum(tokens) * KEPT) for tokens in visual)
        if count.name == "llava":  # the other one has texts that look like special tokens
            ids = [tokenizer.apply_chat_template(messages(turns), return_dict=False) for turns, _ in samples]
            assert count.text_tokens == sum(map(len, ids)) - count.images
    assert counts[0].left_out == {} and counts[0].published is None and counts[0].difference is None
    assert counts[1].left_out == {"missing image": 1}
    assert (counts[1].samples, counts[1].published, counts[1].difference) == (7, 10, -2)


def test_tables(two_sources, small_geometry):
    manifest = Manifest.load(two_sources)
    counts = count_sources(manifest, SampleLengths.of(manifest, small_geometry, KEPT))
    total = total_counts(counts)
    assert (total.samples, total.images, total.published) == (31, manifest.info["images"], None)
    assert total.loss_tokens == manifest.info["loss_tokens"]
    assert total.text_tokens + total.images == manifest.info["text_tokens"]
    lines = source_table(counts, total).text().splitlines()
    assert lines[0].split()[:4] == ["source", "samples", "published", "difference"]
    assert lines[2].split()[:6] == ["small", "7", "10", "-2", "1", "4"]
    assert left_out_lines(counts) == ["small: 1 × missing image"]
    assert changed_lines(counts) == ["small: 1 × sample_id"]
    assert summary_line(total, 2).startswith(f"31 samples of 2 sources with {total.images} images: ")


def test_linear_histogram():
    values = np.array([0, 1, 5, 5, 99, 100])
    histogram = linear_histogram([values, values[:2]], bins=10)
    width = histogram.edges[1]
    assert histogram.edges[0] == 0 and histogram.edges[-1] > 100 and len(histogram.edges) <= 12
    for series, counts in zip(([0, 1, 5, 5, 99, 100], [0, 1]), histogram.counts, strict=True):
        expected = Counter(value // width for value in series)
        assert counts.tolist() == [expected[bin] for bin in range(len(counts))]
    assert linear_histogram([np.array([], dtype=np.int64)]).counts.sum() == 0


def test_log_histogram_loses_nothing():
    values = np.random.default_rng(0).integers(1, 100_000, 5000)
    histogram = log_histogram([values, values[:7], np.array([1])])
    assert histogram.counts.sum(1).tolist() == [5000, 7, 1]
    ratios = histogram.edges[1:] / histogram.edges[:-1]
    assert ratios.max() / ratios.min() < 1.001
    for left, right, count in zip(histogram.edges, histogram.edges[1:-1], histogram.counts[0], strict=False):
        assert count == sum(left <= value < right for value in values.tolist())


def test_canvases(two_sources, stored, small_geometry):
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 112},
        crop_size={"height": 112, "width": 112},
        image_grid_pinpoints=hf_grid_pinpoints(small_geometry),
        resample=3,
    )
    tiles = Counter()
    for samples in stored.values():
        for _, sizes in samples.values():
            for size in sizes:
                pixels = processor(Image.new("RGB", size), return_tensors="np")["pixel_values"]
                tiles[pixels.shape[1]] += 1
    found = count_grids(Manifest.load(two_sources), small_geometry)
    assert set(found) == {(1, 2), (2, 1), (2, 2), (1, 3), (3, 1)}
    by_tiles = Counter()
    for (rows, cols), count in found.items():
        by_tiles[1 + rows * cols] += count
    assert +by_tiles == tiles


def test_split_by_source(two_sources):
    manifest = Manifest.load(two_sources)
    parts = split_by_source(manifest, manifest.text_tokens)
    assert list(parts) == ["llava", "small"]
    for name, values in parts.items():
        expected = [
            int(tokens)
            for tokens, source in zip(manifest.text_tokens, manifest.source, strict=True)
            if manifest.source_names[source] == name
        ]
        assert values.tolist() == expected


def planner(manifest, geometry, budget, batch):
    data = DataConfig(max_sequence_length=budget, on_bad_sample="skip")
    return StepPlanner(data, geometry, manifest, global_batch_size=batch, data_parallel_size=1)


def test_forecast(two_sources, small_geometry):
    manifest = Manifest.load(two_sources)
    lengths = SampleLengths.of(manifest, small_geometry, KEPT)
    budget = int(lengths.before.max()) - 1  # so that the longest does not fit
    forecast = forecast_rows(planner(manifest, small_geometry, budget, batch=31), KEPT)
    fits = lengths.before <= budget
    assert forecast.steps == forecast.steps_per_epoch == 1
    assert forecast.unusable == (~fits).sum() > 0
    assert forecast.samples_per_row.sum() == fits.sum()
    assert forecast.tokens_per_row.sum() == lengths.after[fits].sum()
    assert forecast.fill.max() <= 1
    assert (
        f"left out, as too long for a row or with an image that has no visual token: {forecast.unusable}"
        in forecast_line(forecast)
    )


def test_forecast_of_some_steps(two_sources, small_geometry):
    manifest = Manifest.load(two_sources)
    forecast = forecast_rows(planner(manifest, small_geometry, 6144, batch=2), KEPT, max_steps=5)
    assert (forecast.steps, forecast.steps_per_epoch, forecast.samples_per_row.sum()) == (5, 16, 10)
    assert "16 steps in an epoch, 5 of them planned: " in forecast_line(forecast)


def test_choice(two_sources):
    manifest = Manifest.load(two_sources)
    chosen = choose_samples(manifest, 10, seed=3)
    assert chosen == choose_samples(manifest, 10, seed=3) != choose_samples(manifest, 10, seed=4)
    assert len(set(chosen)) == 10 and Counter(manifest.source[chosen].tolist()) == {0: 5, 1: 5}
    assert Counter(manifest.source[choose_samples(manifest, 20, seed=3)].tolist()) == {0: 13, 1: 7}
    assert choose_samples(manifest, 99, seed=3) == list(range(31))
