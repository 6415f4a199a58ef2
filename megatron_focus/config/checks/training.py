"""What the run, its optimizer and its checkpoints can do together."""

from megatron_focus.config.checks.choices import one_of
from megatron_focus.config.schema import ModelConfig, RunConfig

MODULES = ("vision_tower", "projector", "vision_sampler", "language_model")
"""What can be frozen, be new, or have a learning rate of its own."""


def training_problems(config: RunConfig) -> list[str]:
    """One sentence for each contradiction within the run."""
    training, optimizer, problems = config.training, config.optimizer, []
    problems += one_of("training.precision", training.precision, ("bf16", "fp32"))
    problems += one_of("optimizer.lr_decay_style", optimizer.lr_decay_style, ("cosine", "linear", "constant"))
    problems += one_of("optimizer.fused_adam", optimizer.fused_adam, (None, "transformer_engine", "apex", "torch"))
    trainable = _trainable(config.model)
    for key, modules in (
        ("optimizer.module_lr", list(optimizer.module_lr)),
        ("optimizer.freeze", optimizer.freeze),
        ("checkpoint.new_modules", config.checkpoint.new_modules),
    ):
        for module in modules:
            if module not in MODULES:
                problems += one_of(f"{key} has", module, trainable)
            elif module not in trainable:
                problems.append(
                    f"{key} has {module!r}, but the model has no selector to train: leave it out, or use "
                    "model.vision_sampler.enabled=true with model.vision_sampler.method=learned"
                )
    if config.checkpoint.new_modules and config.checkpoint.pretrained is None:
        problems.append(
            f"checkpoint.new_modules={config.checkpoint.new_modules}, but checkpoint.pretrained names no weights for "
            "the others: set it, or leave both out to train everything from new weights"
        )
    for module in optimizer.freeze:
        if module in optimizer.module_lr:
            problems.append(f"optimizer.freeze and optimizer.module_lr both name {module!r}; keep one")
    if set(trainable) <= set(optimizer.freeze):
        problems.append("optimizer.freeze names every module, so nothing would be trained")
    if config.model.transformer_impl == "transformer_engine" and training.precision == "fp32":
        problems.append(
            "model.transformer_impl=transformer_engine attends packed rows in bf16 only; set training.precision=bf16, "
            "or model.transformer_impl=local"
        )
    if training.loss_spike_factor is not None and training.loss_spike_factor <= 1:
        problems.append(
            f"training.loss_spike_factor={training.loss_spike_factor} must be above 1: it multiplies the usual loss"
        )
    if not 0 <= optimizer.lr_warmup_fraction < 1:
        problems.append(f"optimizer.lr_warmup_fraction={optimizer.lr_warmup_fraction} must be in [0, 1)")
    if not 0 <= optimizer.min_lr <= optimizer.lr:
        problems.append(f"optimizer.min_lr={optimizer.min_lr} must be between 0 and optimizer.lr={optimizer.lr}")
    return problems


def _trainable(model: ModelConfig) -> tuple[str, ...]:
    """The modules that have parameters."""
    sampler = model.vision_sampler
    return tuple(m for m in MODULES if m != "vision_sampler" or (sampler.enabled and sampler.method == "learned"))
