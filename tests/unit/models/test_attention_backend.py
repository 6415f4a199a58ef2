"""The attention of the local layers by device; Transformer Engine's choice is in tests/transformer_engine_cpu."""

import pytest
import torch

from megatron_focus.models.attention_backend import attention_in_use
from tests.tiny import tiny_model

TILES = "vision tower: torch's scaled_dot_product_attention"


@pytest.mark.parametrize(
    ("capability", "dtype", "row"),
    [
        (None, torch.bfloat16, "torch's scaled_dot_product_attention, sample by sample"),
        ((8, 0), torch.float32, "torch's scaled_dot_product_attention, sample by sample"),
        ((8, 0), torch.bfloat16, "torch's variable-length FlashAttention"),
        ((9, 0), torch.bfloat16, "torch's variable-length FlashAttention"),
        ((7, 5), torch.float32, "torch's scaled_dot_product_attention, sample by sample"),
    ],
)
def test_local_layers(monkeypatch, capability, dtype, row):
    pretend(monkeypatch, capability)
    assert attention_in_use(tiny_model(), 1, dtype, deterministic=True) == [f"language model: {row}", TILES]


@pytest.mark.parametrize(("capability", "head"), [((7, 5), 16), ((8, 0), 12), ((8, 0), 320)])
def test_what_the_kernel_cannot_take_is_refused(monkeypatch, capability, head):
    pretend(monkeypatch, capability)
    with pytest.raises(ValueError, match=rf"head size {head} on sm{capability[0]}{capability[1]}.*precision=fp32"):
        attention_in_use(tiny_model(kv_channels=head), 1, torch.bfloat16, deterministic=False)


def pretend(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
