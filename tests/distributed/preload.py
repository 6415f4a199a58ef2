"""What the fork server imports once for all ranks of all tests."""

import warnings

warnings.filterwarnings("ignore")

import torch._dynamo  # noqa: E402
from megatron.core.transformer.moe import experts  # noqa: E402, F401

from megatron_focus.training import trainer  # noqa: E402, F401

torch.set_num_threads(1)
