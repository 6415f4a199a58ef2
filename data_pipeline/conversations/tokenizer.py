"""Tokenizers: loading one with the checks that training relies on, and training a small one in Llama-3's form."""

import hashlib
import json
import os
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_pipeline.conversations.chat_templates import CHAT_TEMPLATES, IMAGE_TOKEN

PAD_TOKEN = "<|pad|>"
"""Pad token of its own: padding with the end-of-turn token would hide the ends of answers from the loss."""

LLAMA3_SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
"""Special tokens that the ``llama3`` template is written with."""

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 splits text before byte-pair merging (from the Llama 3 release)."""


def load_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Load a tokenizer folder and check what the data path and the model rely on.

    Any fast tokenizer will do: byte-level (Llama 3, Qwen) as well as SentencePiece's kind (Llama 2, Vicuna, Mistral).

    Raises:
        ValueError: naming the folder and what is wrong: no fast tokenizer there, no image token, no pad token or one
            that also stands in conversations, ids beyond the vocabulary, or a special token that text can produce.
    """
    path = os.fspath(folder)
    if not os.path.isfile(os.path.join(path, "tokenizer.json")):
        raise ValueError(f"tokenizer {path}: no file tokenizer.json there")
    tokenizer = AutoTokenizer.from_pretrained(path)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"tokenizer {path}: {type(tokenizer).__name__} is not a fast tokenizer")
    _check(tokenizer, path)
    return tokenizer


def add_image_and_pad(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    """A copy of a language model's tokenizer with an image and a pad token of their own, and a chat template.

    The new ids follow the existing ones, so the embedding has to grow to the new ``len(tokenizer)``.

    Args:
        tokenizer: the language model's.
        template: a name of ``chat_templates.TEMPLATE_NAMES``; ``tokenizer`` keeps the template that it has.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens([IMAGE_TOKEN, PAD_TOKEN])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=PAD_TOKEN,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        chat_template=tokenizer.chat_template if template == "tokenizer" else CHAT_TEMPLATES[template],
        clean_up_tokenization_spaces=False,
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int, out: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on ``texts`` with Llama-3's pre-tokeniser and special tokens, and save it to ``out``.

    ``vocab_size`` counts everything: 256 bytes, merges, and the special tokens, which have the last ids. With little
    text the vocabulary stays smaller.

    Raises:
        ValueError: ``vocab_size`` has no room for the bytes and special tokens.
    """
    num_special = len(LLAMA3_SPECIAL_TOKENS) + 2
    if vocab_size < 256 + num_special:
        raise ValueError(f"vocab_size {vocab_size}: at least {256 + num_special} for bytes and special tokens")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - num_special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(list(LLAMA3_SPECIAL_TOKENS))
    llama = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    add_image_and_pad(llama, "llama3").save_pretrained(os.fspath(out))
    return load_tokenizer(out)


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of what decides the ids of a text: pre-tokeniser, vocabulary, merges and added tokens."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    deciding = {key: description[key] for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def special_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Id of a token that the tokenizer must have by name.

    Raises:
        ValueError: it does not have it.
    """
    index = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(index, int) or tokenizer.convert_ids_to_tokens(index) != token:
        raise ValueError(f"tokenizer {tokenizer.name_or_path}: has no token {token!r}")
    return index


def _check(tokenizer: PreTrainedTokenizerFast, path: str) -> None:
    how = f"tools/prepare_tokenizer.py adds both ({IMAGE_TOKEN}, {PAD_TOKEN})"
    image_token, pad_token = getattr(tokenizer, "image_token", None), tokenizer.pad_token
    if image_token != IMAGE_TOKEN:
        raise ValueError(f"tokenizer {path}: image_token is {image_token!r}, not {IMAGE_TOKEN!r}; {how}")
    if not isinstance(pad_token, str):
        raise ValueError(f"tokenizer {path}: has no pad_token; {how}")
    if pad_token == IMAGE_TOKEN:
        raise ValueError(f"tokenizer {path}: pad_token and image_token are both {IMAGE_TOKEN!r}; {how}")
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    in_use = {token for token in special if token in template}
    in_use |= {token for token in (tokenizer.bos_token, tokenizer.eos_token) if isinstance(token, str)}
    if pad_token in in_use:
        raise ValueError(f"tokenizer {path}: pad_token {pad_token!r} also stands in conversations; {how}")
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if highest >= len(tokenizer):
        raise ValueError(f"tokenizer {path}: token {token!r} has id {highest}, but there are {len(tokenizer)} tokens")
    for token in sorted({IMAGE_TOKEN, pad_token, *in_use}):
        ids = tokenizer(token, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if token not in special or special_id(tokenizer, token) in ids:
            raise ValueError(f"tokenizer {path}: {token!r} is not a special token, so any text could contain it")
