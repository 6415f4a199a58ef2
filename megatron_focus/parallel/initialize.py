"""Process start-up: device, process group, Megatron's parallel state, seeds."""

import importlib.util
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
        _require_fused_adam(parallel)
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        from megatron_focus.parallel.cpu_backend import enable_cpu_backend

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


def _require_fused_adam(parallel: ParallelConfig) -> None:
    # NVIDIA's apex is told from the unrelated package of that name by its optimizers.
    fused = importlib.util.find_spec("transformer_engine") or _has_nvidia_apex()
    if parallel.use_distributed_optimizer and not fused:
        raise ValueError(
            "parallel.use_distributed_optimizer=true needs the fused Adam of Transformer Engine (the 'gpu' extra) or "
            "of NVIDIA apex: Megatron-Core cannot checkpoint another; install one, or set it to false"
        )


def _has_nvidia_apex() -> bool:
    apex = importlib.util.find_spec("apex")
    return apex is not None and importlib.util.find_spec("apex.optimizers") is not None


def shut_down() -> None:
    """Leave the job."""
    parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
