"""Sizes that follow from the number of parameters alone."""

import math
from collections.abc import Collection

from megatron_focus.conversion.model_facts import ModelFacts
from megatron_focus.conversion.parameter_table import parameter_table
from megatron_focus.models.modules import module_of

_WEIGHT_BYTES = {"bf16": 2, "fp32": 4}
_GRADIENT_BYTES = 4
# Adam's two moments in fp32, and with bf16 the fp32 master weights as well.
_OPTIMIZER_BYTES = {"bf16": 12, "fp32": 8}


def parameter_count(facts: ModelFacts) -> int:
    """Parameters of the whole model."""
    return sum(math.prod(entry.shape) for entry in parameter_table(facts))


def frozen_count(facts: ModelFacts, freeze: Collection[str]) -> int:
    """Parameters of the modules that are not trained, see ``optimizer.freeze``."""
    return sum(math.prod(entry.shape) for entry in parameter_table(facts) if module_of(entry.megatron) in freeze)


def checkpoint_bytes(parameters: int, frozen: int, precision: str) -> int:
    """Weights, and the optimizer state of those that are not frozen."""
    return parameters * _WEIGHT_BYTES[precision] + (parameters - frozen) * _OPTIMIZER_BYTES[precision]


def least_gpu_bytes(
    parameters: int, precision: str, *, model_parallel: int, data_parallel: int, sharded: bool
) -> float:
    """Weights, gradients and optimizer state of a GPU if all were divided evenly: no layout needs less.

    Activations come on top; ``tools/plan.py`` estimates them.

    Args:
        parameters: of the whole model, all trained.
        precision: ``bf16`` or ``fp32``.
        model_parallel: tensor-parallel times pipeline-parallel size.
        data_parallel: data-parallel size.
        sharded: the optimizer state is divided over the data-parallel ranks (distributed optimizer).
    """
    optimizer = _OPTIMIZER_BYTES[precision] / (data_parallel if sharded else 1)
    return parameters / model_parallel * (_WEIGHT_BYTES[precision] + _GRADIENT_BYTES + optimizer)
