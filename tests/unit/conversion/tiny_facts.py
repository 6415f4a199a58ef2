"""Facts of the tiny models in ``tests.unit.release.tiny_models``, and a random Megatron state for them."""

import torch
from torch import Tensor

from data_pipeline.config import ImageGeometry
from megatron_focus.conversion.model_facts import ModelFacts, TextFacts, TokenFacts, VisionFacts
from megatron_focus.conversion.parameter_table import parameter_table
from megatron_focus.conversion.tensor_source import TensorInfo
from tests.unit.release import tiny_models as tiny

VISION_SAMPLER = {
    "enabled": True,
    "method": "learned",
    "heuristic_keep": None,
    "window": 4,
    "scales": ["1x1", "2x2", "4x4"],
    "score_pooling": "max",
    "gate": "paper",
    "global_view": "compress",
}


def tiny_facts(
    family: str = "llama", tied: bool = False, groups: int = 2, sampler: bool = True, **tokens: object
) -> ModelFacts:
    return ModelFacts(
        vision=VisionFacts(hidden_size=32, ffn_hidden_size=48, num_layers=2, num_attention_heads=2),
        text=TextFacts(
            family=family,
            hidden_size=64,
            ffn_hidden_size=96,
            num_layers=4,
            num_attention_heads=4,
            num_query_groups=groups,
            head_dim=16,
            vocab_size=tiny.VOCAB,
            padded_vocab_size=320,
            tie_embeddings=tied,
            norm_epsilon=1e-6,
            max_position_embeddings=2048,
            rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
        ),
        tokens=TokenFacts(
            **{
                "image_token_id": tiny.IMAGE,
                "pad_token_id": tiny.PAD,
                "bos_token_id": tiny.ID["<|begin_of_text|>"],
                "eos_token_ids": [tiny.ID["<|eot_id|>"], tiny.ID["<|end_of_text|>"]],
                "instruction_start_token_ids": tiny.USER_START,
                "instruction_end_token_ids": tiny.TURN_END,
                "chat_template": tiny.CHAT_TEMPLATE,
            }
            | tokens
        ),
        image=ImageGeometry(
            tile_size=tiny.TILE, patch_size=tiny.PATCH, grid_pinpoints=[[w, h] for h, w in tiny.PINPOINTS]
        ),
        vision_sampler=VISION_SAMPLER | {"enabled": sampler},
        text_sampler={"enabled": True, "layer": 2, "gamma": 0.6},
    )


def random_state(facts: ModelFacts, seed: int = 0) -> dict[str, Tensor]:
    """A state with zeros in the padded rows of the vocabulary, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    state = {e.megatron: 0.1 * torch.randn(e.shape, generator=generator) for e in parameter_table(facts)}
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        if name in state:
            state[name][facts.text.vocab_size :] = 0
    return state


class InMemory:
    """A source whose tensors are there already."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def infos(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        return self.tensors[name]
