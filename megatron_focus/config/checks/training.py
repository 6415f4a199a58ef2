"""What the run, its optimizer and its checkpoints can do together."""

from megatron_focus.config.checks.choices import MODULES, one_of
from megatron_focus.config.schema import RunConfig


def training_problems(config: RunConfig) -> list[str]:
    """One sentence for each contradiction within the run."""
    training, optimizer, problems = config.training, config.optimizer, []
    problems += one_of("training.precision", training.precision, ("bf16", "fp32"))
    problems += one_of("optimizer.lr_decay_style", optimizer.lr_decay_style, ("cosine", "linear", "constant"))
    for key, modules in (("module_lr", list(optimizer.module_lr)), ("freeze", optimizer.freeze)):
        for module in modules:
            problems += one_of(f"optimizer.{key} has", module, MODULES)
    for module in config.checkpoint.new_modules:
        problems += one_of("checkpoint.new_modules has", module, MODULES)
    if config.checkpoint.new_modules and config.checkpoint.pretrained is None:
        problems.append(
            f"checkpoint.new_modules={config.checkpoint.new_modules}, but checkpoint.pretrained names no weights for "
            "the others: set it, or leave both out to train everything from new weights"
        )
    for module in optimizer.freeze:
        if module in optimizer.module_lr:
            problems.append(f"optimizer.freeze and optimizer.module_lr both name {module!r}; keep one")
    if set(MODULES) <= set(optimizer.freeze):
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
    if training.step_timeout_minutes <= 0:
        problems.append(f"training.step_timeout_minutes={training.step_timeout_minutes} must be above 0")
    if not 0 <= optimizer.lr_warmup_fraction < 1:
        problems.append(f"optimizer.lr_warmup_fraction={optimizer.lr_warmup_fraction} must be in [0, 1)")
    if not 0 <= optimizer.min_lr <= optimizer.lr:
        problems.append(f"optimizer.min_lr={optimizer.min_lr} must be between 0 and optimizer.lr={optimizer.lr}")
    return problems
