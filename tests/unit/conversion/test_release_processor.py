"""A release's processor writes a conversation as training did, whatever tokenizer and template it has."""

from dataclasses import replace

import pytest
from PIL import Image
from tokenizers import processors
from transformers import LlavaNextProcessor

from data_pipeline.conversations.conversation import Turn
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import add_image_and_pad, load_tokenizer
from megatron_focus.conversion.release_processor import release_processor
from tests.unit.conversion.tiny_facts import tiny_facts
from tests.unit.data_pipeline.conversations.own_templates import OWN_TEMPLATES
from tests.unit.data_pipeline.family_tokenizers import KINDS, family_tokenizer

CASES = [("chatml", None), ("vicuna", None), *(("tokenizer", own) for own in OWN_TEMPLATES)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("template", "own"), CASES)
def test_ids_are_those_of_training(tmp_path, template, own, kind):
    """Also where the tokenizer puts a first token before every text, as Llama's do, and the template does not."""
    given = family_tokenizer(kind)
    first = (given.bos_token, given.bos_token_id)
    given = add_image_and_pad(given, template)
    given.backend_tokenizer.post_processor = processors.TemplateProcessing(f"{first[0]} $A", None, [first])
    given.chat_template = OWN_TEMPLATES.get(own, given.chat_template)
    given.save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    renderer = Renderer(tokenizer, template)
    facts = tiny_facts(
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        chat_template=renderer.release_template,
    )
    facts = replace(facts, text=replace(facts.text, vocab_size=len(tokenizer), padded_vocab_size=len(tokenizer)))
    release_processor(tmp_path / "tokenizer", facts).save_pretrained(tmp_path / "release")
    processor = LlavaNextProcessor.from_pretrained(tmp_path / "release")

    image = {"type": "image", "image": Image.new("RGB", (30, 20))}
    said = [("user", "<image>\nWhat?"), ("assistant", "A cat."), ("user", "7?"), ("assistant", "Red.")]
    messages = [{"role": role, "content": [{"type": "text", "text": text.split("\n")[-1]}]} for role, text in said]
    messages[0]["content"].insert(0, image)
    written = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    ids = written["input_ids"][0].tolist()
    image_id = tokenizer.image_token_id
    ids = [i for i, before in zip(ids, [None, *ids], strict=False) if not i == before == image_id]
    assert ids == renderer.render([Turn(*turn) for turn in said]).tokens.tolist()
