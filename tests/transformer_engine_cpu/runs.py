"""What ranks do in these tests. Nothing of Megatron-Core is imported before the stand-ins are there."""

from itertools import product
from typing import Any

import torch

from megatron_focus.config.schema import ModelConfig
from tests.tiny import tiny_model
from tests.transformer_engine_cpu.attention_kernels import ATTENTION
from tests.transformer_engine_cpu.kernels import CALLS, DEVICE
from tests.transformer_engine_cpu.sources import install

CARDS = {"A100": (8, 0), "H100": (9, 0)}


def compared_model(precision: str, transformer_impl: str) -> ModelConfig:
    """In bf16 without samplers: near ties would be decided otherwise, and all numbers behind them differ."""
    model = tiny_model()
    model.transformer_impl = transformer_impl
    if precision == "bf16":
        model.vision_sampler.enabled, model.text_sampler.mode = False, "off"
    return model


def steps_on_transformer_engine(weights: dict[str, str], cases: list[tuple[dict, str]], steps: int) -> dict[str, Any]:
    """Train on the layers that GPUs get.

    Args:
        weights: precision -> checkpoint to begin with.
        cases: settings of ``parallel``, and precision.
        steps: of each case.

    Returns:
        results of the cases, and what the stand-ins saw.
    """
    install()
    import megatron.core.tensor_parallel.random as mcore_random
    from megatron.core import parallel_state

    from megatron_focus.models import builder, layer_specs
    from megatron_focus.parallel import cpu_backend
    from megatron_focus.training import optimizer
    from tests.distributed import workers

    # The project refuses these layers without CUDA; here they run all the same, on the path of GPUs.
    common, asked = builder._common, builder.attention_in_use
    optimizer.chosen_adam = lambda setting: "transformer_engine"
    builder.layer_specs = lambda impl: layer_specs._transformer_engine()
    builder._common = lambda *args, **kwargs: common(*args, **kwargs) | {"use_cpu_initialization": False}
    workers.validate = lambda *args: None  # it asks for an installation, and for bf16
    checkpoint, recompute = mcore_random.CheckpointFunction, mcore_random.CheckpointFunction.backward

    def backward(*args: Any) -> Any:
        with cpu_backend._CudaMeansCpu():  # torch leaves its modes before a backward pass
            return recompute(*args)

    checkpoint.backward = staticmethod(backward)
    results = []
    for parallel, precision in cases:
        # In fp32 Transformer Engine has the unfused attention alone, which is refused.
        builder.attention_in_use = asked if precision == "bf16" else lambda *args, **kwargs: []
        config = workers.configure(
            compared_model(precision, "transformer_engine"),
            parallel | {"use_distributed_optimizer": False},
            {"precision": precision},
        )
        results.append(workers.run_steps(config, weights[precision], workers.ROWS, steps))
        parallel_state.destroy_model_parallel()
    return {"results": results, "calls": CALLS, "attention": ATTENTION}


def attention_of_cards(models: dict[str, ModelConfig]) -> dict[tuple[str, str, bool, bool], dict[str, str]]:
    """(model, card, flash-attn installed, deterministic) -> for each use the answer by Transformer Engine's choice."""
    install()
    from transformer_engine.pytorch.attention.dot_product_attention import utils
    from transformer_engine.pytorch.utils import _get_device_compute_capability

    from megatron_focus.models import attention_backend

    def answer(use: attention_backend.AttentionUse, deterministic: bool) -> str:
        try:
            return attention_backend._transformer_engine(use, torch.bfloat16, deterministic)
        except ValueError as error:
            return f"refused: {error}"

    flash, answers = utils.FlashAttentionUtils, {}
    flash.version = utils.PkgVersion("2.8.3")
    flash.set_flash_attention_version()
    for card, model, flash.is_installed, deterministic in product(CARDS, models, (False, True), (False, True)):
        DEVICE["major"], DEVICE["minor"] = CARDS[card]
        _get_device_compute_capability.cache_clear()
        uses = attention_backend.attention_uses(models[model], tensor_parallel_size=2)
        answers[model, card, flash.is_installed, deterministic] = {use.name: answer(use, deterministic) for use in uses}
    return answers
