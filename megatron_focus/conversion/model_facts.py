"""What the conversion must know of a model, free of Megatron's and transformers' configuration classes."""

from dataclasses import dataclass, field
from typing import Any

from data_pipeline.config import ImageGeometry

TEXT_FAMILIES = ("llama", "qwen2", "mistral")
"""Decoder families with a release; their text models share module names in transformers."""


@dataclass(frozen=True, kw_only=True)
class VisionFacts:
    """A CLIP vision tower."""

    hidden_size: int
    ffn_hidden_size: int
    num_layers: int
    """Layers Megatron builds: one less than the Hugging Face tower, whose last layer LLaVA never reads."""
    num_attention_heads: int
    layernorm_epsilon: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """A decoder-only language model."""

    family: str
    """One of ``TEXT_FAMILIES``; decides the class and whether queries, keys and values have a bias (qwen2)."""
    hidden_size: int
    ffn_hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    """Key and value heads."""
    head_dim: int
    vocab_size: int
    """Ids the tokenizer knows, special tokens included; rows beyond are padding."""
    padded_vocab_size: int
    """Rows of Megatron's embedding and output layer."""
    tie_embeddings: bool
    norm_epsilon: float
    max_position_embeddings: int
    rope_parameters: dict[str, Any]
    """transformers' ``rope_parameters``: ``rope_theta``, ``rope_type`` and what the type needs."""

    def __post_init__(self) -> None:
        if self.family not in TEXT_FAMILIES:
            raise ValueError(f"text family {self.family!r} has no release; choose one of {TEXT_FAMILIES}")
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_query_groups {self.num_query_groups}"
            )
        if self.padded_vocab_size < self.vocab_size:
            raise ValueError(f"padded_vocab_size {self.padded_vocab_size} is below vocab_size {self.vocab_size}")

    @property
    def qkv_bias(self) -> bool:
        """Whether the query, key and value projections have a bias."""
        return self.family == "qwen2"


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """Ids the release needs beside the tokenizer's own files."""

    image_token_id: int
    """Placeholder of an image."""
    pad_token_id: int
    bos_token_id: int | None
    eos_token_ids: list[int]
    """Ids that end an answer (end of turn, end of text)."""
    instruction_start_token_ids: list[list[int]] = field(default_factory=list)
    """Markers after which the content of a user turn begins; empty when the template has no turns."""
    instruction_end_token_ids: list[list[int]] = field(default_factory=list)
    """Markers that end a turn."""
    chat_template: str
    """Jinja template of the conversations that the model was trained on."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A whole FocusLLaVA model."""

    vision: VisionFacts
    text: TextFacts
    tokens: TokenFacts
    image: ImageGeometry
    vision_sampler: dict[str, Any]
    """``enabled, method, heuristic_keep, window, scales, score_pooling, score_scale, center_scores, gate,
    global_view``, as ``FocusLlavaConfig`` takes them."""
    text_sampler: dict[str, Any]
    """``enabled, layer, gamma``, the fixed values that inference uses."""

    @property
    def has_selector(self) -> bool:
        """Whether the vision-guided sampler has weights: it is on, and chooses scales."""
        return bool(self.vision_sampler["enabled"]) and self.vision_sampler["method"] == "learned"

    @property
    def cells(self) -> int:
        """Cells of a tile."""
        return self.image.cells_per_side**2
