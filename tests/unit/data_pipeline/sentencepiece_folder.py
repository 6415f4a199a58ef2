"""Folders whose only tokenizer is a SentencePiece model, as Vicuna 1.5 is published."""

import io
import json
from pathlib import Path

import pytest

from tests.unit.data_pipeline.family_tokenizers import TEXTS

PIECES = 330


def write_sentencepiece(folder: Path, texts: list[str] = TEXTS) -> Path:
    """Train on ``texts`` and write what a published folder has beside the weights."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=PIECES,
        hard_vocab_limit=True,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=-1,
        minloglevel=2,
    )
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder
