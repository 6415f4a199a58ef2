"""Process start-up: device, process group, Megatron's parallel state, seeds."""

import math
import os
from datetime import timedelta

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from megatron_focus.config.schema import ParallelConfig


def initialize(parallel: ParallelConfig, seed: int, timeout_minutes: float = 30.0) -> torch.device:
    """Join the job and build Megatron's process groups.

    NCCL on machines with CUDA, gloo elsewhere.

    Args:
        parallel: the layout, already validated for this world size.
        seed: base seed of initial weights; each pipeline stage and tensor-parallel shard gets its own from it.
        timeout_minutes: how long a collective may wait before the job is ended.

    Returns:
        the device of this rank.

    Raises:
        ValueError: the machine lacks what the layout needs.
    """
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "0")):
        os.environ.setdefault(name, value)
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        from megatron_focus.parallel.cpu_backend import enable_cpu_backend

        if parallel.cross_entropy_loss_fusion and parallel.cross_entropy_fusion_impl == "te":
            raise ValueError("parallel.cross_entropy_fusion_impl=te needs a GPU; use native")
        enable_cpu_backend()
        device, backend = torch.device("cpu"), "gloo"
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        distributed_timeout_minutes=math.ceil(timeout_minutes),
    )
    # Tensor-parallel ranks draw replicated weights alike, from either generator; stages draw different layers.
    stage_seed = seed + 100 * parallel_state.get_pipeline_model_parallel_rank()
    torch.manual_seed(stage_seed)
    model_parallel_cuda_manual_seed(stage_seed)
    return device


def shut_down() -> None:
    """Leave the job."""
    parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
