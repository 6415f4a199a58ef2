"""Every kind on its sample folder, which has the authors' own format."""

import io
import json

import pytest
from PIL import Image

from data_pipeline.sample import Sample
from data_pipeline.sources.prompts import OPTION_LETTER, SHORT_ANSWER, TRANSCRIBE
from data_pipeline.sources.registry import KINDS, open_source
from examples.sample_sets.make import main

EXPECTED = {
    # samples, samples without an image, images, published
    "llava_json": (8, 2, 8, None),
    "llava_pretrain": (12, 0, 12, 558_128),
    "sharegpt4v": (18, 4, 14, 665_058),
    "allava_vflan": (8, 0, 8, 203_065),
    "docvqa": (6, 0, 6, 10_194),
    "synthdog_en": (8, 0, 8, 29_765),
    "chartqa": (8, 0, 8, 18_317),
    "dvqa": (10, 0, 10, None),
    "ai2d": (10, 0, 10, 12_413),
    "geoqa_plus": (8, 0, 8, None),
    "parquet": (8, 1, 7, None),
}
LLAVA_FORM = {
    "docvqa": ("docvqa_train_10k.jsonl", "spdocvqa_qas/train_v1.0_withQT.json", 10_211),
    "synthdog_en": ("synthdog_en.jsonl", "data/train-*.parquet", 29_765),
    "chartqa": ("chartqa_train_18k.jsonl", "train/train_human.json", 18_317),
    "dvqa": ("dvqa_train_200k.jsonl", "train_qa.json", 200_000),
    "ai2d": ("ai2d_train_12k.jsonl", "questions", 12_413),
    "geoqa_plus": ("geoqa+.jsonl", "json", 72_318),
}


def test_every_kind_has_a_sample_folder_and_a_docstring(sample_specs):
    assert list(sample_specs) == list(KINDS) == list(EXPECTED)
    for kind in KINDS.values():
        assert "Layout" in kind.__doc__ and "Prompts" in kind.__doc__


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_sample_is_good(kind, sample_specs):
    count, without_image, images, published = EXPECTED[kind]
    source = open_source(sample_specs[kind])
    samples = list(source)
    assert all(isinstance(sample, Sample) for sample in samples), samples
    assert (len(source), source.name, source.published) == (count, kind, published)
    assert len(samples) == count == len({sample.id for sample in samples})
    assert [source.id(index) for index in range(count)] == [sample.id for sample in samples]
    assert sum(not sample.images for sample in samples) == without_image
    assert sum(len(sample.images) for sample in samples) == images
    for sample in samples:
        assert sample.source == kind
        assert [turn.role for turn in sample.turns] == ["user", "assistant"] * (len(sample.turns) // 2)
        for image in sample.images:
            with Image.open(io.BytesIO(image.read())) as decoded:
                decoded.load()
                assert min(decoded.size) >= 64
    assert len({sample.images[0].read() for sample in samples if sample.images}) > 1


@pytest.mark.parametrize("kind", EXPECTED)
def test_random_access_equals_iteration(kind, sample_specs):
    samples = list(open_source(sample_specs[kind]))
    again = open_source(sample_specs[kind])
    for index in [*reversed(range(len(samples))), 1, 0, 2]:
        assert again[index] == samples[index]


def texts(specs, kind, index=0):
    return [turn.text for turn in open_source(specs[kind])[index].turns]


def test_prompt_forms(sample_specs):
    first, answer, *rest = texts(sample_specs, "chartqa")
    assert first == f"<image>\nWhat is the value of north?\n{SHORT_ANSWER}" and answer.isdecimal()
    assert rest[0] == "What is the sum of all bars?"  # the suffix stands once
    first, answer = texts(sample_specs, "ai2d")
    assert first.startswith("<image>\nWhat comes after egg?\nA. ") and first.endswith(f"\nD. egg\n{OPTION_LETTER}")
    assert f"\n{answer}. larva\n" in first
    first, answer = texts(sample_specs, "geoqa_plus")
    degrees = int(first.partition("∠A=")[2].partition("°")[0])
    assert f"\n{answer}. {(180 - degrees) // 2}°\n" in first and first.endswith(OPTION_LETTER)
    first, answer = texts(sample_specs, "synthdog_en")
    assert first == f"<image>\n{TRANSCRIBE}" and len(answer.split()) == 25


def test_ai2d_leaves_out_the_benchmark_and_the_empty_option(sample_specs):
    samples = list(open_source(sample_specs["ai2d"]))
    assert not any(sample.id.startswith("5.png") for sample in samples)
    assert len(open_source(f"{sample_specs['ai2d']},split=all")) == 12
    assert not any("{}" in sample.turns[0].text for sample in samples)
    folders = {sample.id: sample.images[0].path.parent.name for sample in samples}
    assert folders["0.png-0"] == "images" and folders["0.png-1"] == "abc_images"


def test_ocr_vqa_images_with_another_suffix_are_found(sample_specs):
    names = [sample.images[0].path.name for sample in open_source(sample_specs["sharegpt4v"]) if sample.images]
    assert names.count("0000000003.gif") == 1  # the file says .jpg


def test_questions_of_a_document_keep_the_file_order(sample_specs):
    source = open_source(sample_specs["docvqa"])
    folder = sample_specs["docvqa"].partition("=")[2]
    with open(f"{folder}/spdocvqa_qas/train_v1.0_withQT.json") as file:
        data = json.load(file)["data"]
    grouped: dict[str, list[str]] = {}
    for record in data:
        grouped.setdefault(record["image"], []).extend([record["question"], record["answers"][0]])
    assert list(grouped) == [sample.id for sample in source]
    for sample in source:
        found = [turn.text.replace(SHORT_ANSWER, "").replace("<image>", "").strip() for turn in sample.turns]
        assert found == grouped[sample.id]


def test_dvqa_draws_the_same_charts_for_the_same_seed(sample_specs):
    spec = sample_specs["dvqa"].partition(",")[0]

    def ids(options):
        return [sample.id for sample in open_source(spec + options)]

    everything = ids("")
    assert len(everything) == 20 and open_source(spec).published == 200_000
    five, ten, other = (ids(f",images_limit={n},seed={seed}") for n, seed in ((5, 1), (10, 1), (10, 2)))
    assert ids(",images_limit=10,seed=1") == ten != other
    assert set(five) < set(ten) < set(everything) and ten == sorted(ten)
    assert ids(",images_limit=99") == everything


@pytest.mark.parametrize("kind", LLAVA_FORM)
def test_the_form_of_llava_is_read_and_chosen_where_both_are_there(kind, copied, sample_specs):
    file, original, published = LLAVA_FORM[kind]
    folder, spec = copied(kind)
    (folder / "extra").mkdir()
    (folder / "extra/0.png").write_bytes(b"x")
    talk = [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "3"}]
    (folder / file).write_text(json.dumps({"id": 0, "image": "extra/0.png", "conversations": talk}) + "\n")
    with pytest.raises(ValueError, match=r"has .* and .*; choose with file="):
        open_source(spec)
    source = open_source(f"{kind}={folder},file={file}")
    assert len(source) == 1 and source.name == kind and source.published == published
    assert source[0].turns[0].text == "<image>\nHow many?"
    both = open_source(f"{spec},file={original}")
    assert both[0].turns == open_source(sample_specs[kind])[0].turns


def test_command_line(tmp_path, capsys):
    assert main(["--output", str(tmp_path / "samples")]) == 0
    assert capsys.readouterr().out == f"11 data sets with 104 samples, and a tokenizer, in {tmp_path}/samples\n"
    assert main(["--output", str(tmp_path / "samples")]) == 1
    assert f"error: {tmp_path}/samples: exists already" in capsys.readouterr().err
