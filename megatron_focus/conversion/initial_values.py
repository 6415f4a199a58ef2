"""Values of the parts that a source lacks, drawn as training draws them for a new model."""

import hashlib
import math

import torch
from torch import Tensor

from megatron_focus.config.schema import ModelConfig
from megatron_focus.conversion.tensor_source import Shape


def initial_value(name: str, shape: Shape, model: ModelConfig, seed: int) -> Tensor:
    """Float32 value of one tensor of the projector, the newline or the vision sampler.

    Megatron-Core draws a linear layer from N(0, ``init_method_std``), and the last of a block from a normal whose
    deviation is divided by the root of twice the number of layers, which is one; biases are 0.

    Args:
        name: the table's Megatron name.
        shape: of the whole tensor.
        model: for ``init_method_std``.
        seed: ``training.seed``. Each tensor draws from its own generator, so none depends on the others.

    Raises:
        ValueError: there is no rule for the name.
    """
    std = model.init_method_std
    deviations = {
        "projector.encoder.linear_fc1.weight": std,
        "projector.encoder.linear_fc2.weight": std / math.sqrt(2),
        "vision_sampler.selector.weight": std,
        "image_newline": model.language.hidden_size**-0.5,
    }
    if name in deviations:
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randn(shape, generator=generator) * deviations[name]
    if name.endswith(".bias"):
        return torch.zeros(shape)
    raise ValueError(f"{name} has no initial value")
