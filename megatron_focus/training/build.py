"""What a run is built of: tokenizer, model chunks, optimizer and schedule."""

from pathlib import Path

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.utils import unwrap_model
from transformers import PreTrainedTokenizerFast

from data_pipeline.conversations.tokenizer import load_tokenizer
from megatron_focus.checkpoint.state import Trainable
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.schema import RunConfig
from megatron_focus.models.builder import build_model
from megatron_focus.models.modules import freeze_modules
from megatron_focus.training.optimizer import build_optimizer, build_scheduler


def run_tokenizer(config: RunConfig) -> PreTrainedTokenizerFast:
    """The run's tokenizer, which must fit the model's embedding.

    Raises:
        ValueError: it has more tokens than the embedding has rows.
    """
    assert config.data.tokenizer is not None
    tokenizer = load_tokenizer(config.data.tokenizer)
    if len(tokenizer) > config.model.language.vocab_size:
        raise ValueError(
            f"tokenizer {config.data.tokenizer} has {len(tokenizer)} tokens, more than "
            f"model.language.vocab_size={config.model.language.vocab_size}"
        )
    return tokenizer


def build_trainable(config: RunConfig, image_token_id: int) -> Trainable:
    """Model chunks wrapped for data parallelism, optimizer and schedule of this rank."""
    parallel = config.parallel
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    models = build_model(config.model, parallel, image_token_id=image_token_id, dtype=dtype)
    freeze_modules(models, config.optimizer.freeze)
    data_parallel = DistributedDataParallelConfig(
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        align_param_gather=parallel.overlap_param_gather,  # begun by ``start_parameter_gather``, never by a module
        grad_reduce_in_fp32=True,
    )
    # Only the first chunk's gradients are still being made when its bucket could be reduced.
    chunks = [
        DistributedDataParallel(model.config, data_parallel, model, disable_bucketing=i > 0)
        for i, model in enumerate(models)
    ]
    optimizer = build_optimizer(config, chunks)
    for chunk in chunks:
        transformer = unwrap_model(chunk).config
        transformer.finalize_model_grads_func = finalize_model_grads
        if parallel.overlap_grad_reduce:
            transformer.no_sync_func = chunk.no_sync if len(chunks) == 1 else [c.no_sync for c in chunks]
    return Trainable(chunks=chunks, optimizer=optimizer, scheduler=build_scheduler(config, optimizer))


def checkpoint_folder(path: str) -> Path:
    """A checkpoint's folder, or the newest in a run's folder."""
    return CheckpointStore(path).latest() or Path(path)
