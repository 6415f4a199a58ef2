"""Encoding text whose special tokens come from the template alone, never from the data."""

import re
import secrets
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast


class GuardedTokenizer:
    """A tokenizer that knows its special tokens only by guards: names that no text can contain.

    In a text, the string of a special token is text like any other. Where a special token is meant, its guard is
    written. Everything is encoded in one call, so that each token is what the tokenizer itself gives in that context.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        special = {i: token for i, token in self._backend.get_added_tokens_decoder().items() if token.special}
        # Random characters for private use: no text holds them by chance, and none can be written to hold them.
        secret = "".join(chr(0xE000 + byte) for byte in secrets.token_bytes(8))
        self._guards = {token.content: f"{secret}{chr(0xF0000 + n)}" for n, token in enumerate(special.values())}
        self._backend.add_tokens(
            [
                AddedToken(
                    self._guards[token.content],
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=False,  # so that it is found although special tokens are not
                )
                for token in special.values()
            ]
        )
        size = 1 + max(self._backend.get_vocab().values())
        self._real_id = np.arange(size, dtype=np.int64)
        for index, token in special.items():
            self._real_id[self._backend.token_to_id(self._guards[token.content])] = index
        longest_first = sorted(self._guards, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.any_guard = re.compile(f"{secret}.")
        """Matches any guard."""

    def guard(self, trusted: str) -> str:
        """The text of a template with guards in place of its special tokens."""
        return self._special.sub(lambda match: self._guards[match[0]], trusted)

    def encode(self, guarded: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Token ids int64 [N], and for each the first character it stands for and the one behind its last."""
        encoding = self._backend.encode(guarded, add_special_tokens=False)
        offsets = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int64).reshape(-1, 2)
        # A mark of a word's beginning that stands for no character counts with the character behind it.
        starts, ends = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)
        return self._real_id[np.array(encoding.ids, dtype=np.int64)], starts, ends
