"""Ranges of single numbers: the other checks divide by some of them."""

from megatron_focus.config.schema import RunConfig

LARGEST_SEED = 2**63 - 1
"""What every generator of random numbers takes."""


def size_problems(config: RunConfig) -> list[str]:
    """One sentence for each number that is too small or too large."""
    model, parallel, training = config.model, config.parallel, config.training
    language, vision, image = model.language, model.vision, model.image
    at_least_one = {
        "model.image.tile_size": image.tile_size,
        "model.image.patch_size": image.patch_size,
        "model.image.grid_pinpoints (their number)": len(image.grid_pinpoints),
        "model.vision.hidden_size": vision.hidden_size,
        "model.vision.ffn_hidden_size": vision.ffn_hidden_size,
        "model.vision.num_attention_heads": vision.num_attention_heads,
        "model.language.num_layers": language.num_layers,
        "model.language.hidden_size": language.hidden_size,
        "model.language.ffn_hidden_size": language.ffn_hidden_size,
        "model.language.num_attention_heads": language.num_attention_heads,
        "model.language.num_query_groups": language.num_query_groups,
        "model.language.kv_channels": 1 if language.kv_channels is None else language.kv_channels,
        "model.language.vocab_size": language.vocab_size,
        "model.language.make_vocab_size_divisible_by": language.make_vocab_size_divisible_by,
        "model.language.rotary_base": language.rotary_base,
        "parallel.tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "parallel.pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "data.max_sequence_length": config.data.max_sequence_length,
        "data.worst_case_factor": config.data.worst_case_factor,
        "data.rows_multiple_of": config.data.rows_multiple_of,
        "model.image.max_image_pixels": image.max_image_pixels,
        "training.train_iters": training.train_iters,
        "training.exit_iter": 1 if training.exit_iter is None else training.exit_iter,
        "training.global_batch_size": training.global_batch_size,
        "checkpoint.save_interval": config.checkpoint.save_interval,
        "logging.log_interval": config.logging.log_interval,
    }
    at_least_zero = {
        "model.vision_sampler.balance_loss_coeff": model.vision_sampler.balance_loss_coeff,
        "data.num_workers": config.data.num_workers,
        "data.prefetch_steps": config.data.prefetch_steps,
        "data.shuffle_window": config.data.shuffle_window,
        "data.cache_gib": config.data.cache_gib or 0,
        **{f"data.source_weights.{source}": weight for source, weight in config.data.source_weights.items()},
        "data.seed": config.data.seed,
        "training.seed": training.seed,
        "training.max_skipped_steps": training.max_skipped_steps,
        "checkpoint.keep_last": config.checkpoint.keep_last,
        "optimizer.clip_grad": config.optimizer.clip_grad,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        **{f"optimizer.module_lr.{module}": lr for module, lr in config.optimizer.module_lr.items()},
    }
    problems = [f"{key}={value} must be 1 or more" for key, value in at_least_one.items() if value < 1]
    problems += [f"{key}={value} must be 0 or more" for key, value in at_least_zero.items() if value < 0]
    above_zero = {
        "model.vision.layernorm_epsilon": vision.layernorm_epsilon,
        "model.language.layernorm_epsilon": language.layernorm_epsilon,
        "model.language.rope_scaling_factor": language.rope_scaling_factor,
        "model.init_method_std": model.init_method_std,
        "optimizer.adam_eps": config.optimizer.adam_eps,
        "training.step_timeout_minutes": training.step_timeout_minutes,
        "logging.peak_tflops": 1.0 if config.logging.peak_tflops is None else config.logging.peak_tflops,
    }
    problems += [f"{key}={value} must be above 0" for key, value in above_zero.items() if value <= 0]
    if config.optimizer.lr <= 0:
        problems.append(f"optimizer.lr={config.optimizer.lr} must be above 0; freeze modules with optimizer.freeze")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= (beta := getattr(config.optimizer, name)) < 1:
            problems.append(f"optimizer.{name}={beta} must be in [0, 1)")
    for key, seed in (("training.seed", training.seed), ("data.seed", config.data.seed)):
        if seed > LARGEST_SEED:
            problems.append(f"{key}={seed} must be at most {LARGEST_SEED}")
    return problems
