"""What doctor and preflight say of an attention that start-up would refuse; the choice: test_attention_backend."""

import pytest
import torch

from megatron_focus.config.loading import load_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.diagnosis import config_check, rank_facts
from megatron_focus.diagnosis.comparison import compare
from megatron_focus.diagnosis.config_check import check_config
from megatron_focus.diagnosis.rank_facts import RankFacts

REFUSED = "no fused attention for the language model on sm80; install flash-attn"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def answer(said):
        def of_run(config: RunConfig):
            if isinstance(said, Exception):
                raise said
            return said

        for module in (config_check, rank_facts):
            monkeypatch.setattr(module, "attention_of_run", of_run)

    return answer


def test_doctor(gpu, run_yaml):
    config = load_config(run_yaml)
    gpu(["language model: cuDNN", "vision tower: cuDNN"])
    check = check_config(config, None, [])
    assert check.described["attention"] == "language model: cuDNN; vision tower: cuDNN" and check.findings == []
    gpu(ValueError(REFUSED))
    [finding] = check_config(config, None, []).findings
    assert (finding.about, finding.message, finding.is_problem) == ("attention", REFUSED, True)
    gpu(ImportError("libcudnn.so.9: no such file"))
    [finding] = check_config(config, None, []).findings
    assert "Transformer Engine cannot be asked: libcudnn" in finding.message


def test_preflight_tells_the_configuration_from_a_node(gpu, run_yaml):
    config = load_config(run_yaml)

    def facts(node, said):
        gpu(said)
        found = RankFacts(node, 0, 0)
        rank_facts._attention(found, config)
        return found

    fused = ["language model: cuDNN", "vision tower: cuDNN"]
    assert facts("n0", fused).shown == {"attention": "; ".join(fused)}
    everywhere = compare([facts("n0", ValueError(REFUSED)), facts("n1", ValueError(REFUSED))])
    assert everywhere.everywhere == [f"attention: {REFUSED}"] and not everywhere.problems
    one = compare([facts("n0", fused), facts("n1", ValueError(REFUSED))])
    assert one.problems == {"n1": [f"attention: {REFUSED}"]} and not one.everywhere
