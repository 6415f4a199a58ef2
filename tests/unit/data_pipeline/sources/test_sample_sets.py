"""Every kind on its sample folder, which has the authors' own format."""

import io
import json
import shutil

import pytest
from PIL import Image

from data_pipeline.sample import BadSample, Sample
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
    "open_llava_next": (11, 2, 9, None),
}
FILES_OF = {
    "sharegpt4v": "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json",
    "allava_vflan": "allava_vflan/ALLaVA-Instruct-VFLAN-4V.json",
    "open_llava_next": "open-llava-next/open-llava-next_instruct_mix1M.json",
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


@pytest.mark.parametrize("kind", ["sharegpt4v", "allava_vflan", "open_llava_next", *LLAVA_FORM])
def test_images_in_another_tree(kind, copied, sample_specs, tmp_path):
    """Annotations in one folder and images in another, as InternVL has them; the path may be absolute."""
    folder, _ = copied(kind)
    name = LLAVA_FORM[kind][0] if kind in LLAVA_FORM else FILES_OF[kind]
    annotations = tmp_path / "opensource"
    (annotations / name).parent.mkdir(parents=True)
    if kind in LLAVA_FORM:
        (folder / "extra").mkdir()
        (folder / "extra/0.png").write_bytes(b"x")
        talk = [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "3"}]
        (annotations / name).write_text(json.dumps({"id": 0, "image": "extra/0.png", "conversations": talk}))
    else:
        shutil.move(folder / name, annotations / name)
    for images in (f"../{kind}", folder):
        source = open_source(f"{kind}={annotations},images={images}")
        assert len(source) > 0 and all(isinstance(sample, Sample) for sample in source)
    without = open_source(f"{kind}={annotations}")
    assert any(isinstance(sample, BadSample) and sample.reason == "missing image" for sample in without)


IMAGES_OF = {
    "docvqa": "spdocvqa_images",
    "chartqa": "train/png",
    "dvqa": "images",
    "geoqa_plus": "image",
    "ai2d": "",
}


@pytest.mark.parametrize("kind", IMAGES_OF)
def test_the_authors_form_with_images_in_another_tree(kind, copied, sample_specs, tmp_path):
    folder, spec = copied(kind)
    moved = ["images", "abc_images"] if kind == "ai2d" else [IMAGES_OF[kind]]
    for name in moved:
        (tmp_path / "pictures").mkdir(exist_ok=True)
        shutil.move(folder / name, tmp_path / "pictures" / (name if kind == "ai2d" else "all"))
    with pytest.raises(ValueError, match=r"image folder .*: no such folder"):
        open_source(spec)
    source = open_source(f"{spec},images=../pictures" + ("" if kind == "ai2d" else "/all"))
    assert [sample.turns for sample in source] == [
        sample.turns for sample in open_source(sample_specs[kind].partition(",")[0])
    ]


def test_synthdog_images_in_another_tree(copied, tmp_path):
    _, spec = copied("synthdog_en")
    with pytest.raises(ValueError, match=r"images=\.\./other: the parquet files hold the images"):
        open_source(f"{spec},images=../other")
    (tmp_path / "texts").mkdir()
    (tmp_path / "page.jpg").write_bytes(b"x")
    truth = json.dumps({"gt_parse": {"text_sequence": "A page."}})
    (tmp_path / "texts/metadata.jsonl").write_text(json.dumps({"file_name": "page.jpg", "ground_truth": truth}))
    (sample,) = open_source(f"synthdog_en={tmp_path}/texts,images=..")
    assert sample.images[0].path.resolve() == tmp_path / "page.jpg"


@pytest.mark.parametrize(("place", "empty"), [("images", False), (".", False), (".", True), ("../elsewhere", False)])
def test_the_folders_of_llava_pretrain(place, empty, copied, sample_specs, tmp_path):
    """In ``images/``, beside the file (and perhaps an empty ``images/``) as ``images.zip`` unpacks, or elsewhere."""
    folder, spec = copied("llava_pretrain")
    if place != "images":
        (folder / place).mkdir(exist_ok=True)
        for numbered in (folder / "images").iterdir():
            shutil.move(numbered, folder / place)
        if not empty:
            (folder / "images").rmdir()
    source = open_source(spec if place != "../elsewhere" else f"{spec},images={place}")
    samples = list(source)
    assert all(isinstance(sample, Sample) for sample in samples) and len(samples) == 12
    assert [sample.turns for sample in samples] == [s.turns for s in open_source(sample_specs["llava_pretrain"])]


def test_llava_pretrain_without_images_is_refused(copied):
    folder, spec = copied("llava_pretrain")
    shutil.rmtree(folder / "images")
    with pytest.raises(ValueError, match=rf"image folder {folder}/images: no such folder"):
        open_source(spec)


def test_command_line(tmp_path, capsys):
    assert main(["--output", str(tmp_path / "samples")]) == 0
    assert capsys.readouterr().out == f"12 data sets with 115 samples, and a tokenizer, in {tmp_path}/samples\n"
    assert main(["--output", str(tmp_path / "samples")]) == 1
    assert f"error: {tmp_path}/samples: exists already" in capsys.readouterr().err
