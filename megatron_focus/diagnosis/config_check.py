"""Whether a configuration can run on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from megatron_focus.config.schema import RunConfig
from megatron_focus.config.validation import validate
from megatron_focus.diagnosis.finding import Finding
from megatron_focus.diagnosis.gpus import Gpu
from megatron_focus.diagnosis.machine import size
from megatron_focus.diagnosis.run_files import inspect_run_files
from megatron_focus.diagnosis.state_size import least_gpu_bytes
from megatron_focus.models.attention_backend import attention_of_run

_MIB = 2**20


@dataclass
class ConfigCheck:
    """What was found."""

    world_size: int
    described: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def model_parallel_size(config: RunConfig) -> int:
    """Ranks that hold one copy of the model: the smallest run."""
    parallel = config.parallel
    return max(1, parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size)


def check_config(config: RunConfig, world_size: int | None, gpus: Sequence[Gpu]) -> ConfigCheck:
    """Check a configuration that was loaded.

    Args:
        config: the configuration.
        world_size: ranks of the run, over all machines; None checks for the fewest that hold the model.
        gpus: of this machine.
    """
    check = ConfigCheck(world_size=world_size or model_parallel_size(config))
    try:
        validate(config, check.world_size)
    except ValueError as error:
        check.findings.append(Finding(about="configuration", message=str(error)))
    is_valid = not check.findings
    files = inspect_run_files(config, count_parameters=is_valid)
    check.described |= files.described
    check.findings += files.findings
    if is_valid:
        _ranks(check, config, gpus)
        _attention(check, config)
    if files.parameters is not None:
        check.described["model"] = f"{files.parameters / 1e6:,.1f} M parameters"
        _memory(check, config, gpus, files.parameters)
    return check


def _ranks(check: ConfigCheck, config: RunConfig, gpus: Sequence[Gpu]) -> None:
    tp, pp = config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size
    check.described["ranks"] = f"{check.world_size} (TP {tp} x PP {pp} x DP {check.world_size // (tp * pp)}), " + (
        f"{len(gpus)} GPUs here" if gpus else "no GPU here: gloo on CPUs"
    )
    if gpus and check.world_size > len(gpus):
        message = (
            f"{check.world_size} ranks need {-(-check.world_size // len(gpus))} machines like this ({len(gpus)} GPUs)"
        )
        check.findings.append(Finding(about="ranks", message=message, is_problem=False))
    if gpus and tp > len(gpus):
        message = f"={tp} spans machines of {len(gpus)} GPUs: its all-reduces would leave the machine in every layer"
        check.findings.append(Finding(about="parallel.tensor_model_parallel_size", message=message, is_problem=False))


def _attention(check: ConfigCheck, config: RunConfig) -> None:
    if not torch.cuda.is_available():
        return
    try:
        check.described["attention"] = "; ".join(attention_of_run(config))
    except ValueError as error:
        check.findings.append(Finding(about="attention", message=str(error)))
    except (ImportError, OSError) as error:
        message = f"Transformer Engine cannot be asked: {error}; mend it, or set model.transformer_impl=local"
        check.findings.append(Finding(about="attention", message=message))


def _memory(check: ConfigCheck, config: RunConfig, gpus: Sequence[Gpu], parameters: int) -> None:
    model_parallel = model_parallel_size(config)
    least = least_gpu_bytes(
        parameters,
        config.training.precision,
        model_parallel=model_parallel,
        data_parallel=check.world_size // model_parallel,
        sharded=config.parallel.use_distributed_optimizer,
    )
    if config.optimizer.freeze:  # frozen modules have neither gradients nor optimizer state
        return
    check.described["memory"] = f"at least {size(least)} a rank for weights, gradients and optimizer"
    for gpu in gpus:
        if gpu.memory_mib * _MIB < least:
            message = (
                f"GPU {gpu.index} has {size(gpu.memory_mib * _MIB)}; weights, gradients and optimizer alone "
                f"take {size(least)} on {check.world_size} ranks: more ranks, or a larger "
                "parallel.tensor_model_parallel_size or parallel.pipeline_model_parallel_size"
            )
            check.findings.append(Finding(about="memory", message=message))
