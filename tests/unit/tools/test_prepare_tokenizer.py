import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import LLAMA3_SPECIAL_TOKENS, load_tokenizer
from tests.unit.data_pipeline.sentencepiece_folder import PIECES, write_sentencepiece
from tools.prepare_tokenizer import main


@pytest.fixture
def language_model(tmp_path):
    """A byte-level tokenizer as a language model has it: neither image nor pad token."""
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(LLAMA3_SPECIAL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_result_can_be_trained_with(language_model, tmp_path, capsys):
    assert main(["--from", str(language_model), "--output", str(tmp_path / "out")]) == 0
    before, after = AutoTokenizer.from_pretrained(language_model), load_tokenizer(tmp_path / "out")
    assert len(after) == len(before) + 2 and after.get_vocab().items() > before.get_vocab().items()
    assert {after.image_token_id, after.pad_token_id} == {len(before), len(before) + 1}
    assert Renderer(after, "llama3").chat_template == after.chat_template
    assert f"{len(after)} tokens" in capsys.readouterr().out


def test_from_a_sentencepiece_model(tmp_path):
    source = write_sentencepiece(tmp_path / "vicuna")
    assert main(["--from", str(source), "--template", "vicuna", "--output", str(tmp_path / "out")]) == 0
    after = load_tokenizer(tmp_path / "out")
    assert (after.image_token_id, after.pad_token_id, len(after)) == (PIECES, PIECES + 1, PIECES + 2)
    assert Renderer(after, "vicuna").end_ids == [after.eos_token_id]


def test_refusals(language_model, tmp_path, capsys):
    assert main(["--from", str(language_model), "--output", str(language_model)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["--from", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "no file tokenizer.json or tokenizer.model there" in capsys.readouterr().err
    assert main(["--from", str(language_model), "--template", "chatml", "--output", str(tmp_path / "out")]) == 1
    assert f"tokenizer {language_model}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
