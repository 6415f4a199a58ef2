import io
import json
import shutil

import pytest
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from data_pipeline.anyres import hf_grid_pinpoints, visual_token_count
from data_pipeline.config import ImageGeometry
from data_pipeline.conversations.chat_templates import CHAT_TEMPLATES, TEMPLATE_NAMES
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import (
    LLAMA3_SPECIAL_TOKENS,
    add_image_and_pad,
    load_tokenizer,
    tokenizer_hash,
    train_tokenizer,
)
from tests.unit.data_pipeline.family_tokenizers import KINDS, family_tokenizer


def test_trained_tokenizer_loads_and_round_trips(tokenizer, tokenizer_folder):
    assert len(tokenizer) <= 512
    special = [*LLAMA3_SPECIAL_TOKENS, "<image>", "<|pad|>"]
    ids = tokenizer.convert_tokens_to_ids(special)
    assert ids == list(range(len(tokenizer) - len(special), len(tokenizer)))
    assert (tokenizer.image_token, tokenizer.pad_token) == ("<image>", "<|pad|>")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|eot_id|>")
    for text in ("A cat sits on a mat.", "日本語 🙂\tcafé\r\n\n x=1", "\x00\x7f"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert len(tokenizer("A cat sits on a mat.")["input_ids"]) < 15  # merges were learnt
    automatic = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert automatic.image_token_id == tokenizer.image_token_id
    assert automatic.chat_template == tokenizer.chat_template


def test_works_in_llava_next_processor(tokenizer, image_bytes):
    geometry = ImageGeometry()
    side = {"height": 336, "width": 336}
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size=side, crop_size=side, image_grid_pinpoints=hf_grid_pinpoints(geometry)
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    image = Image.open(io.BytesIO(image_bytes(120, 90)))
    ids = processor(images=image, text=prompt, return_tensors="pt")["input_ids"][0]
    assert int((ids == tokenizer.image_token_id).sum()) == visual_token_count(120, 90, geometry)
    assert int((ids == tokenizer.bos_token_id).sum()) == 1


def test_hash_follows_what_decides_ids(tokenizer, tokenizer_folder, tmp_path):
    assert tokenizer_hash(load_tokenizer(tokenizer_folder)) == tokenizer_hash(tokenizer)
    other = train_tokenizer(["something else entirely, with other words"] * 9, 300, tmp_path)
    assert tokenizer_hash(other) != tokenizer_hash(tokenizer)


def test_vocabulary_too_small(tmp_path):
    with pytest.raises(ValueError, match="vocab_size 200: at least 263"):
        train_tokenizer(["x"], 200, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pad_token": "<|eot_id|>"},
            "pad_token '<|eot_id|>' also stands in conversations; tools/prepare_tokenizer.py adds",
        ),
        ({"pad_token": "<|end_header_id|>"}, "also stands in conversations"),
        ({"pad_token": "<|begin_of_text|>"}, "also stands in conversations"),
        ({"pad_token": None}, "has no pad_token; tools/prepare_tokenizer.py adds both"),
        ({"pad_token": "<image>"}, "pad_token and image_token are both"),
        ({"image_token": None}, "image_token is None, not '<image>'"),
    ],
)
def test_bad_tokenizers_are_refused(change, message, tokenizer_folder, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(tokenizer_folder, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | change
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        load_tokenizer(folder)
    assert str(folder) in str(error.value) and message in str(error.value)


def test_image_token_that_text_can_produce_is_refused(tokenizer, tokenizer_folder, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(tokenizer_folder, folder)
    description = json.loads((folder / "tokenizer.json").read_text())
    description["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    description["pre_tokenizer"]["trim_offsets"] = True
    description["model"]["ignore_merges"] = True
    description["model"]["vocab"]["<image>"] = tokenizer.image_token_id  # now also a word like any other
    (folder / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"'<image>' is not a special token, so any text could contain it"):
        load_tokenizer(folder)


def test_ids_beyond_the_vocabulary_are_refused(tokenizer_folder, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(tokenizer_folder, folder)
    description = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = description["model"]["vocab"]
    vocabulary["\u0100"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"has id 5000, but there are \d+ tokens"):
        load_tokenizer(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATE_NAMES)
def test_tokenizers_of_all_families_load(kind, template, tmp_path):
    given = family_tokenizer(kind)
    add_image_and_pad(given, template).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.chat_template == CHAT_TEMPLATES.get(template, given.chat_template)
    assert (loaded.bos_token, loaded.eos_token, loaded.unk_token) == (given.bos_token, given.eos_token, given.unk_token)
    assert tokenizer_hash(loaded) == tokenizer_hash(given)
    named = "llama3" if template == "tokenizer" else template  # given's own
    assert Renderer(loaded, template).hash == Renderer(given, named).hash


def test_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=rf"tokenizer {tmp_path}: no file tokenizer.json"):
        load_tokenizer(tmp_path)
