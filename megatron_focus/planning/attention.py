"""Which attention a run takes on a GPU that is not here, and so what it keeps for the backward pass.

Transformer Engine's rules as far as this project's two uses meet them; a test asks it itself
(tests/transformer_engine_cpu). The run's start-up does so on the GPU (``models/attention_backend.py``).
"""

from dataclasses import dataclass
from enum import Enum, auto

from megatron_focus.config.schema import RunConfig
from megatron_focus.planning.hardware import Cluster

_CUDNN_PACKED_ROWS = (9, 0)


class Kernel(Enum):
    """Form of an attention."""

    FUSED = auto()
    """Over the whole row (or all tiles) at once; keeps no scores."""
    SAMPLES = auto()
    """torch's, a call a sample; keeps no scores."""
    UNFUSED = auto()
    """Keeps all scores: the square of each sample's length, for each head."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Of both parts of the model, and in words."""

    language: Kernel
    vision: Kernel
    words: str = ""

    @property
    def is_refused(self) -> bool:
        """Whether the run's start-up would end it."""
        return Kernel.UNFUSED in (self.language, self.vision)


ON_CPUS = Attention(language=Kernel.SAMPLES, vision=Kernel.SAMPLES)


def attention_on(config: RunConfig, cluster: Cluster) -> Attention:
    """What a run takes on the GPUs of a cluster, of compute capability 8.0 and newer."""
    if config.model.transformer_impl == "local":
        if config.training.precision == "bf16":
            words = "torch's variable-length FlashAttention"
            return Attention(language=Kernel.FUSED, vision=Kernel.FUSED, words=words)
        words = "torch's scaled_dot_product_attention, sample by sample"
        return Attention(language=Kernel.SAMPLES, vision=Kernel.FUSED, words=words)
    if cluster.gpu.compute_capability >= _CUDNN_PACKED_ROWS:
        return Attention(language=Kernel.FUSED, vision=Kernel.FUSED, words="cuDNN's, through Transformer Engine")
    if cluster.flash_attn:
        words = "flash-attn's, which has to be installed beside the 'gpu' extra: a run without it is refused"
        return Attention(language=Kernel.FUSED, vision=Kernel.FUSED, words=words)
    # There, cuDNN has no deterministic backward pass.
    vision = Kernel.UNFUSED if config.training.deterministic else Kernel.FUSED
    words = (
        "UNFUSED: cuDNN takes packed rows from compute capability 9.0 on, so the run is refused at start-up; install "
        "flash-attn, or set model.transformer_impl=local"
    )
    return Attention(language=Kernel.UNFUSED, vision=vision, words=words)
