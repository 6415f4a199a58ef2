"""The machines a plan is made for: what vendors state, and what a plan assumes to be attainable of it."""

from dataclasses import dataclass

from megatron_focus.observability.peaks import PEAK_TFLOPS

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU in a node of its kind. Bandwidths are bytes per second and direction, of one GPU."""

    name: str
    compute_capability: tuple[int, int]
    memory_gib: float
    """What a program sees (torch's "total capacity"), rounded down to a whole GiB."""
    peak_flops: float
    """Dense bf16, FLOP/s."""
    memory_bandwidth: float
    node_bandwidth: float
    """NVLink to the other GPUs of the node."""
    network_bandwidth: float
    """One network card a GPU."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        # NVIDIA A100 data sheet (SXM): 312 TFLOP/s, 1,555 and 2,039 GB/s, NVLink 600 GB/s both ways together.
        # DGX A100 data sheet: eight 200 Gb/s adapters for eight GPUs.
        Gpu(
            name="a100-40gb",
            compute_capability=(8, 0),
            memory_gib=39.0,
            peak_flops=PEAK_TFLOPS["A100"] * 1e12,
            memory_bandwidth=1555e9,
            node_bandwidth=300e9,
            network_bandwidth=25e9,
        ),
        Gpu(
            name="a100-80gb",
            compute_capability=(8, 0),
            memory_gib=79.0,
            peak_flops=PEAK_TFLOPS["A100"] * 1e12,
            memory_bandwidth=2039e9,
            node_bandwidth=300e9,
            network_bandwidth=25e9,
        ),
        # NVIDIA H100 data sheet (SXM): 989 TFLOP/s dense, 3.35 TB/s, NVLink 900 GB/s both ways together.
        # DGX H100 data sheet: eight 400 Gb/s adapters for eight GPUs.
        Gpu(
            name="h100-80gb",
            compute_capability=(9, 0),
            memory_gib=79.0,
            peak_flops=PEAK_TFLOPS["H100"] * 1e12,
            memory_bandwidth=3350e9,
            node_bandwidth=450e9,
            network_bandwidth=50e9,
        ),
        # NVIDIA H200 data sheet (SXM): as H100, with 141 GB at 4.8 TB/s.
        Gpu(
            name="h200-141gb",
            compute_capability=(9, 0),
            memory_gib=139.0,
            peak_flops=PEAK_TFLOPS["H200"] * 1e12,
            memory_bandwidth=4800e9,
            node_bandwidth=450e9,
            network_bandwidth=50e9,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What no data sheet says. None of these was measured with this project; all are printed with a plan."""

    matmul_share: float = 0.65
    """Of the peak that matrix products reach."""
    attention_share: float = 0.45
    """Of the peak that fused attention reaches. FlashAttention-2 (arXiv 2307.08691) reports 50 to 73 % on A100 for long
    equal sequences; packed samples of about a thousand tokens reach less."""
    memory_share: float = 0.75
    """Of the memory bandwidth that norms, activations, RoPE and the optimizer reach."""
    link_share: float = 0.7
    """Of NVLink and network bandwidth that collectives reach."""
    fixed_gib: float = 4.0
    """CUDA context, NCCL buffers of all groups, cuBLAS workspaces."""
    fragmentation: float = 0.08
    """Of the activations: memory that the allocator holds and cannot use."""

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"matrix products reach {self.matmul_share:.0%} of the peak, attention {self.attention_share:.0%}, "
            f"memory-bound work {self.memory_share:.0%} of the memory bandwidth, links {self.link_share:.0%}",
            "TP messages are exposed; gradients overlap only with overlap_grad_reduce, parameters only with "
            "overlap_param_gather; pipeline messages are hidden by the interleaved schedule alone",
            "ranks are numbered TP, then DP, then PP; each GPU has a network card, and a group that leaves a node "
            "uses those of all its members there, up to NVLink's bandwidth; a message between two stages uses one",
            f"margin: {self.fixed_gib:g} GiB for CUDA context, NCCL and workspaces, and {self.fragmentation:.0%} of "
            "the activations for fragmentation",
        ]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The GPUs of a job."""

    gpu: Gpu
    gpus: int
    node_size: int = 8
    flash_attn: bool = True
    """Whether the package is installed there."""
    assumptions: Assumptions = Assumptions()

    def bandwidth(self, span: int, members_a_node: int) -> float:
        """Attainable bytes/s of a rank in a ring.

        Args:
            span: consecutive ranks within which the members of the group lie.
            members_a_node: of the group. Rings cross a group that leaves the node over the cards of all its members
                there, one ring each (NCCL), and inside the node all of them share NVLink.
        """
        link = self.gpu.node_bandwidth
        if span > self.node_size:
            link = min(link, members_a_node * self.gpu.network_bandwidth)
        return link * self.assumptions.link_share
