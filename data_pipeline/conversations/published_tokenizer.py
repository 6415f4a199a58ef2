"""The tokenizer of a language model's folder, as its authors published it."""

from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from data_pipeline.published_folder import check_folder

FILES = ("tokenizer.json", "tokenizer.model")
"""What a folder has one of; the second is SentencePiece's, and all that some have (Vicuna 1.5)."""


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer in the folder."""
    return any((folder / name).is_file() for name in FILES)


def published_vocabulary(folder: Path) -> dict[str, int]:
    """Tokens and their ids in the folder's files alone: a tokenizer's class may add some of its own.

    Raises:
        ValueError: as ``published_tokenizer``.
    """
    file = folder / FILES[0]
    if not file.is_file():
        return published_tokenizer(folder).get_vocab()
    try:
        return Tokenizer.from_file(str(file)).get_vocab()
    except Exception as error:  # the library has one class for all
        raise ValueError(f"{file}: cannot be read: {error}") from error


def published_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load it; from ``tokenizer.json``, or made from ``tokenizer.model``.

    Raises:
        ValueError: there is no such folder, neither file in it or none that can be read, it is not a fast tokenizer, or
            making one needs a package that is not installed.
    """
    check_folder(folder)
    if not has_tokenizer(folder):
        raise ValueError(
            f"{folder}: no file {' or '.join(FILES)} there; name a language model's folder, or its tokenizer's"
        )
    # Without these transformers takes the file for one of another kind, and complains of its first line.
    if not (folder / FILES[0]).is_file() and not (is_sentencepiece_available() and is_protobuf_available()):
        raise ValueError(
            f"{folder}: has {FILES[1]} and no {FILES[0]}; to read it: pip install sentencepiece==0.2.1 protobuf"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # each library has its own for a damaged file
        raise ValueError(f"{folder}: its tokenizer cannot be read: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{folder}: {type(tokenizer).__name__} is not a fast tokenizer")
    return tokenizer
