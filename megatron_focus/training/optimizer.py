"""Megatron's optimizer and learning-rate schedule from the configuration."""

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_focus.config.schema import RunConfig
from megatron_focus.models.modules import module_of
from megatron_focus.training.fused_adam import chosen_adam, use_adam


def build_optimizer(config: RunConfig, chunks: list[DistributedDataParallel]) -> MegatronOptimizer:
    """AdamW over the trainable parameters, with one parameter group for each learning rate."""
    settings, bf16 = config.optimizer, config.training.precision == "bf16"
    optimizer_config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_eps=settings.adam_eps,
        clip_grad=settings.clip_grad,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
        overlap_param_gather=config.parallel.overlap_param_gather,
    )
    overrides = get_standard_config_overrides(optimizer_config)
    for module, lr in settings.module_lr.items():
        # The whole schedule scales with the peak, its end included.
        overrides[_parameters_of(module)] = {"max_lr": lr, "min_lr": settings.min_lr * lr / settings.lr}
    optimizer = get_megatron_optimizer(optimizer_config, chunks, overrides)
    use_adam(optimizer, chosen_adam(settings.fused_adam))
    return optimizer


def _parameters_of(module: str) -> ParamKey:
    predicate = ParamWithNamePredicate(name=module, fn=lambda parameter, name: module_of(name) == module)
    return ParamKey(with_name_predicate=predicate)


def build_scheduler(config: RunConfig, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """Linear warm-up from 0, then the decay, in steps over the whole run."""
    settings, iterations = config.optimizer, config.training.train_iters
    warmup = min(int(settings.lr_warmup_fraction * iterations), iterations - 1)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=iterations,
        lr_decay_style=settings.lr_decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=iterations,
        wd_incr_style="constant",
    )
