"""The choice of the fused AdamW, and torch's with steps counted per group."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from megatron_focus.training import fused_adam
from megatron_focus.training.fused_adam import TorchAdam, chosen_adam, use_adam


def groups(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = [[(3, 4), (5,)], [(2, 2)], []]
    return [
        {
            "params": [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in of_group],
            "lr": lr,
            "max_lr": lr,
        }
        for of_group, lr in zip(sizes, (1e-2, 1e-3, 1.0), strict=True)
    ]


def test_torchs_takes_the_steps_of_adamw_and_counts_them_in_every_group():
    settings = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    ours, reference = groups(0), groups(0)
    optimizer = SimpleNamespace(optimizer=torch.optim.AdamW(ours, **settings))
    use_adam(optimizer, "torch")
    assert isinstance(optimizer.optimizer, TorchAdam)
    expected = torch.optim.AdamW(reference, **settings)
    for step in range(5):
        for side in (ours, reference):
            for group in side:
                for parameter in group["params"]:
                    parameter.grad = torch.sin(parameter.detach() * (step + 1))
        optimizer.optimizer.step()
        expected.step()
    for group, other in zip(ours, reference, strict=True):
        for parameter, wanted in zip(group["params"], other["params"], strict=True):
            torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-7)
    assert [(g["step"], g["max_lr"]) for g in optimizer.optimizer.param_groups] == [(5, 1e-2), (5, 1e-3), (5, 1.0)]


def test_apexs_takes_the_place_of_what_megatron_took(monkeypatch):
    class FusedAdam(torch.optim.Optimizer):
        def __init__(self, params, lr, betas, eps, weight_decay, adam_w_mode):
            assert adam_w_mode
            super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    module = ModuleType("apex.optimizers")
    module.FusedAdam = FusedAdam
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", module)
    settings = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    optimizer = SimpleNamespace(optimizer=torch.optim.AdamW(groups(0), **settings))
    use_adam(optimizer, "apex")
    assert type(optimizer.optimizer) is FusedAdam
    assert {key: optimizer.optimizer.defaults[key] for key in settings} == settings
    assert [group["lr"] for group in optimizer.optimizer.param_groups] == [1e-2, 1e-3, 1.0]
    placed = optimizer.optimizer
    use_adam(optimizer, "apex")
    assert optimizer.optimizer is placed


@pytest.mark.parametrize(
    ("installed", "expected"),
    [({"transformer_engine", "apex"}, "transformer_engine"), ({"apex"}, "apex"), (set(), "torch")],
)
def test_null_takes_the_best_that_is_here(monkeypatch, installed, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused_adam, "is_installed", lambda name: name in installed)
    monkeypatch.setattr(fused_adam, "has_nvidia_apex", lambda: "apex" in installed)
    assert chosen_adam(None) == expected
    assert chosen_adam("apex") == "apex"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_a_cpu_has_torchs():
    assert chosen_adam(None) == chosen_adam("torch") == "torch"
    with pytest.raises(ValueError, match="fused_adam=apex needs a GPU"):
        chosen_adam("apex")
