"""Small tokenizers of the kinds that language models come with, trained here in a moment."""

import functools
import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data_pipeline.conversations.tokenizer import LLAMA3_PATTERN, LLAMA3_SPECIAL_TOKENS, add_image_and_pad

KINDS = ("byte-level", "sentencepiece", "sentencepiece-first")
"""Llama 3's and Qwen's; Llama 2's, Vicuna's and Mistral's, each text behind a special token a new word; the same of
newer exports, only the first text a new word."""

CHATML_SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>")

TEXTS = [
    "A chat between a curious user and an assistant. USER: What is it? ASSISTANT: A cat on a mat. [INST] Why? [/INST]",
    "<<SYS>>\nYou are a helpful assistant.\n<</SYS>>\n\nThe image shows 1,024 cars, 日本 and a café; user system.\n",
] * 20


@functools.cache
def family_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the special tokens of all templates."""
    backend, bos, eos = _byte_level() if kind == "byte-level" else _sentencepiece(first=kind.endswith("first"))
    backend.add_special_tokens([*LLAMA3_SPECIAL_TOKENS, *CHATML_SPECIAL_TOKENS])
    unk = None if kind == "byte-level" else "<unk>"
    base = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token=unk)
    return add_image_and_pad(base, "llama3")


def _byte_level() -> tuple[Tokenizer, str, str]:
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return backend, "<|begin_of_text|>", "<|end_of_text|>"


def _sentencepiece(first: bool) -> tuple[Tokenizer, str, str]:
    """As transformers' LlamaConverter writes a SentencePiece BPE model with byte fallback."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    # Characters seen here alone are no pieces, so that bytes stand for them.
    seen = [text.replace("日本", "").replace("é", "").replace("\n", " ") for text in TEXTS]
    trained.train_from_iterator(seen, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    vocabulary = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if first:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend, "<s>", "</s>"
