from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from data_pipeline.conversations import published_tokenizer as module
from data_pipeline.conversations.published_tokenizer import has_tokenizer, published_tokenizer
from tests.unit.data_pipeline.family_tokenizers import TEXTS, family_tokenizer
from tests.unit.data_pipeline.sentencepiece_folder import PIECES, write_sentencepiece


def test_from_a_sentencepiece_model(tmp_path):
    folder = write_sentencepiece(tmp_path / "vicuna")
    tokenizer = published_tokenizer(folder)
    assert has_tokenizer(folder) and isinstance(tokenizer, PreTrainedTokenizerFast) and len(tokenizer) == PIECES
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in (*TEXTS[:2], "two  spaces ", "🙂"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == theirs.encode(text)


def test_from_tokenizer_json(tmp_path):
    family_tokenizer("byte-level").save_pretrained(tmp_path)
    assert published_tokenizer(tmp_path).get_vocab() == family_tokenizer("byte-level").get_vocab()


def test_missing_packages_are_named(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    for package in ("sentencepiece", "protobuf"):
        with monkeypatch.context() as patch:
            patch.setattr(module, f"is_{package}_available", lambda: False)
            with pytest.raises(ValueError, match=r"pip install sentencepiece==0\.2\.1 protobuf") as error:
                published_tokenizer(tmp_path)
            assert str(tmp_path) in str(error.value)


def test_no_tokenizer_or_a_damaged_one(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"hf download lmsys/vicuna-7b-v1\.5 --local-dir models/vicuna-7b-v1\.5"):
        published_tokenizer(Path("lmsys/vicuna-7b-v1.5"))
    with pytest.raises(ValueError, match=r"no file tokenizer\.json or tokenizer\.model there"):
        published_tokenizer(tmp_path)
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / name).write_text("broken")
        monkeypatch.setattr(module, "is_sentencepiece_available", lambda: True)
        with pytest.raises(ValueError, match="its tokenizer cannot be read"):
            published_tokenizer(tmp_path)
