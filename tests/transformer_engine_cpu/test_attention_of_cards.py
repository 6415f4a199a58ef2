"""The attention that Transformer Engine takes for the paper's model, by its own choice, as the project reports it."""

import pytest

from megatron_focus.config.loading import load_config
from megatron_focus.config.schema import ModelConfig
from megatron_focus.planning.attention import Kernel, attention_on
from megatron_focus.planning.hardware import GPUS, Cluster
from tests.distributed.harness import run_ranks
from tests.transformer_engine_cpu.runs import CARDS, attention_of_cards
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
    [found] = run_ranks(attention_of_cards, 1, models, timeout=600.0, bare=True)
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
    assert answers[model, card, flash, deterministic] == {"language model": row, "vision tower": tiles}


@pytest.mark.parametrize("deterministic", [False, True])
def test_an_a100_without_flash_attention_is_refused_with_the_line_that_mends_it(answers, deterministic):
    message = answers["llama-3-8b", "A100", False, deterministic]["language model"]
    assert "no fused attention for the language model on sm80 (flash-attn: not installed" in message
    assert "16 matrices of 8192 x 8192 scores" in message and message.endswith(MEND)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("card", ["A100", "H100"])
def test_plans_count_what_transformer_engine_takes(answers, card, flash, deterministic):
    config = load_config("examples/paper/finetune.yaml", [f"training.deterministic={deterministic}"])
    cluster = Cluster(gpu=GPUS[f"{card.lower()}-80gb"], gpus=8, flash_attn=flash)
    assert cluster.gpu.compute_capability == CARDS[card]
    planned = attention_on(config, cluster)
    asked = answers["llama-3-8b", card, flash, deterministic]
    unfused = [asked[use].startswith("refused") for use in ("language model", "vision tower")]
    assert [kernel is Kernel.UNFUSED for kernel in (planned.language, planned.vision)] == unfused
