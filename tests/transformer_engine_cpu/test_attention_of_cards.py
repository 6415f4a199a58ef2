"""The attention that Transformer Engine takes for the paper's model, by its own choice, as the project reports it."""

import pytest

from megatron_focus.config.loading import load_config
from megatron_focus.config.schema import ModelConfig
from tests.distributed.harness import run_ranks
from tests.transformer_engine_cpu.runs import attention_of_cards
from tests.transformer_engine_cpu.sources import needs_sources

pytestmark = [needs_sources, pytest.mark.slow]

FLASH, CUDNN = "FlashAttention 2.8.3 through Transformer Engine", "cuDNN through Transformer Engine"
MEND = "python -m pip install --no-build-isolation 'flash-attn==2.8.3', or set model.transformer_impl=local"


@pytest.fixture(scope="module")
def answers():
    models: dict[str, ModelConfig] = {
        "llama-3-8b": load_config("examples/paper/finetune.yaml").model,
        "qwen2.5-7b": load_config("examples/backbones/qwen2.5-7b/64gpus.yaml").model,
    }
    [found] = run_ranks(attention_of_cards, 1, models, timeout=300.0, bare=True)
    return found


@pytest.mark.parametrize("model", ["llama-3-8b", "qwen2.5-7b"])
@pytest.mark.parametrize(
    ("card", "flash", "deterministic", "row", "tiles"),
    [
        ("A100", True, False, FLASH, FLASH),
        ("A100", True, True, FLASH, FLASH),
        ("H100", False, False, CUDNN, CUDNN),
        ("H100", False, True, CUDNN, CUDNN),
        ("H100", True, False, CUDNN, CUDNN),
        ("H100", True, True, CUDNN, CUDNN),
    ],
)
def test_fused(answers, model, card, flash, deterministic, row, tiles):
    expected = [f"language model: {row}", f"vision tower: {tiles}"]
    assert answers[model, card, flash, deterministic] == expected


@pytest.mark.parametrize("deterministic", [False, True])
def test_an_a100_without_flash_attention_is_refused_with_the_line_that_mends_it(answers, deterministic):
    message = answers["llama-3-8b", "A100", False, deterministic]
    assert "no fused attention for the language model on sm80 (flash-attn: not installed" in message
    assert "16 matrices of 8192 x 8192 scores" in message and message.endswith(MEND)
