"""Small models, a small tokenizer and small inputs for the tests of the release and of the conversion.

Tiles of 56 pixels with patches of 14: 4 x 4 cells.
"""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from megatron_focus.conversion.release_config import AUTO_MAP
from megatron_focus.release.configuration_focus_llava import FocusLlavaConfig
from megatron_focus.release.image_geometry import image_grid
from megatron_focus.release.modeling_focus_llava import FocusLlavaForConditionalGeneration

TILE, PATCH, CELLS = 56, 14, 4
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]  # (height, width)
SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIALS += ["<|pad|>", "<image>"]
VOCAB = 256 + len(SPECIALS)
ID = {name: 256 + index for index, name in enumerate(SPECIALS)}
IMAGE, PAD = ID["<image>"], ID["<|pad|>"]

CHAT_TEMPLATE = (
    "<|begin_of_text|>{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and Llama-3's special tokens; every byte is a token of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


TOKENIZER = tiny_tokenizer()
USER_START = [TOKENIZER.encode("<|start_header_id|>user<|end_header_id|>\n\n", add_special_tokens=False)]
TURN_END = [[ID["<|eot_id|>"]]]


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=TILE,
        patch_size=PATCH,
    )


def text_config(family: str = "llama", tied: bool = False, key_heads: int = 2):
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}[family]
    special = {"sliding_window": None} if family == "mistral" else {}
    return kind(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        vocab_size=VOCAB,
        tie_word_embeddings=tied,
        bos_token_id=ID["<|begin_of_text|>"],
        eos_token_id=ID["<|eot_id|>"],
        pad_token_id=PAD,
        **special,
    )


def common(family: str, tied: bool = False, key_heads: int = 2) -> dict:
    return {
        "vision_config": vision_config().to_dict(),
        "text_config": text_config(family, tied, key_heads).to_dict(),
        "image_token_id": IMAGE,
        "image_grid_pinpoints": PINPOINTS,
        "tie_word_embeddings": tied,
    }


def stock_config(family: str = "llama", **kwargs) -> LlavaNextConfig:
    return LlavaNextConfig(**common(family, **kwargs))


def focus_config(family: str = "llama", vision=None, text=None, **kwargs) -> FocusLlavaConfig:
    return FocusLlavaConfig(
        **common(family, **kwargs),
        vision_sampler={"enabled": False} if vision is None else {"window": 4, **vision},
        text_sampler={"enabled": False} if text is None else {"layer": 2, "gamma": 0.6, **text},
        instruction_start_token_ids=USER_START,
        instruction_end_token_ids=TURN_END,
    )


def lively(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights large enough that windows choose different scales and attention is not uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if "norm" in name or "layrnorm" in name:
                parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.1 * noise)
            elif "selector" in name or "newline" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * (1.5 / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.1))
    return model.eval()


def focus_model(family: str = "llama", vision=None, text=None, seed: int = 0, **kwargs):
    return lively(FocusLlavaForConditionalGeneration(focus_config(family, vision, text, **kwargs)), seed)


def write_release(folder) -> FocusLlavaForConditionalGeneration:
    """The files of a release, of a small model with both samplers; returns the model."""
    model = focus_model(vision={}, text={})
    model.config.auto_map = AUTO_MAP
    model.generation_config.pad_token_id = PAD
    model.generation_config.suppress_tokens = [IMAGE]
    model.save_pretrained(folder)  # with the code beside it
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
    )
    LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return model


def prompt_ids(text: str, image_sizes: list[tuple[int, int]]) -> list[int]:
    """Ids of a text whose ``<image>`` are expanded as the processor does."""
    ids: list[int] = []
    sizes = iter(image_sizes)
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        repeats = image_grid(next(sizes), PINPOINTS, TILE, CELLS).baseline_tokens if token == IMAGE else 1
        ids += [token] * repeats
    return ids


def user(content: str) -> str:
    return f"<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>"


def assistant(content: str) -> str:
    return f"<|start_header_id|>assistant<|end_header_id|>\n\n{content}<|eot_id|>"


ANSWER = "<|start_header_id|>assistant<|end_header_id|>\n\n"


def batch(
    prompts: list[tuple[str, list[tuple[int, int]]]], seed: int = 0, padding_side: str = "left"
) -> dict[str, Tensor]:
    """Model inputs of some prompts and the sizes of their images, with random pixels."""
    rows = [prompt_ids(text, sizes) for text, sizes in prompts]
    longest = max(map(len, rows))
    pad = [[PAD] * (longest - len(row)) for row in rows]
    left = padding_side == "left"
    ids = [p + row if left else row + p for p, row in zip(pad, rows, strict=True)]
    mask = [
        [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p) for p, r in zip(pad, rows, strict=True)
    ]
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    sizes = [size for _, row in prompts for size in row]
    if sizes:
        tiles = [image_grid(size, PINPOINTS, TILE, CELLS).num_tiles for size in sizes]
        pixels = torch.zeros(len(sizes), max(tiles), 3, TILE, TILE)
        for image, count in enumerate(tiles):
            # The pixels of an image depend on the seed and its size alone, not on its neighbours.
            generator = torch.Generator().manual_seed(seed + 1000 * sizes[image][0] + sizes[image][1])
            pixels[image, :count] = torch.randn(count, 3, TILE, TILE, generator=generator)
        inputs |= {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
    return inputs


QUESTION = "what is this?"
ONE = (user(f"<image>\n{QUESTION}") + ANSWER, [(97, 61)])
TWO = (user("<image>\n<image>\ncompare them") + ANSWER, [(40, 150), (100, 100)])
TURNS = (user("<image>\nname it") + assistant("a cat") + user("and its colour?") + ANSWER, [(33, 120)])
TEXT = (user("hello there, how are you?") + ANSWER, [])
