"""What a machine lacks is said before anything starts."""

import pytest
import torch

from megatron_focus.config.schema import ParallelConfig
from megatron_focus.parallel.initialize import initialize


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_transformer_engines_loss_needs_a_gpu(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="cross_entropy_fusion_impl=te needs a GPU"):
        initialize(ParallelConfig(cross_entropy_loss_fusion=True, cross_entropy_fusion_impl="te"), seed=0)
