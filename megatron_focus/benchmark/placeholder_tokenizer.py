"""A tokenizer for models whose tokens are random numbers."""

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def placeholder_tokenizer(image_token: int) -> PreTrainedTokenizerFast:
    """A tokenizer with the placeholder's id; the conversion asks one for its special tokens."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": image_token}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
