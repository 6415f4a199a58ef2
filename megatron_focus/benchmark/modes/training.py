"""The mode without a flag: training and prefill beside transformers' LLaVA-NeXT."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from megatron_focus.benchmark.modes.mode import Mode, Option
from megatron_focus.benchmark.modes.shared import DEVICE, PRESET, ROUNDS, check_cuda
from megatron_focus.benchmark.presets import PRESETS

if TYPE_CHECKING:
    from megatron_focus.benchmark.run import Report

_IMPLEMENTATION = Option(
    "--transformer-impl", "layers of this project's side", {"choices": ("local", "transformer_engine")}
)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch  # here, as all below: the command line needs none of it

    from megatron_focus.benchmark.run import run
    from megatron_focus.config.schema import ParallelConfig
    from megatron_focus.parallel.initialize import initialize, shut_down

    check_cuda(options.device)
    if options.device == "cpu" and torch.cuda.is_available():  # Megatron would take the GPU
        raise ValueError("argument --device: to use the CPU of a machine with CUDA, set CUDA_VISIBLE_DEVICES= (empty)")
    preset = PRESETS[options.preset]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        device = initialize(ParallelConfig(), seed=1234)
        report = run(preset, device, options.transformer_impl, options.rounds or preset.rounds)
    finally:
        if torch.distributed.is_initialized():
            shut_down()
    _print(report)
    return report.to_json()


def _print(report: "Report") -> None:
    from megatron_focus.benchmark.table import LEGEND, format_phase, verdict

    print(f"preset {report.preset}, {report.transformer_impl}: {report.environment}")
    print(f"logits of both sides differ by {report.logit_difference:.1e} of the largest\n")
    for phase in report.phases:
        print(format_phase(phase) + "\n")
    print(LEGEND + "\n")
    print(verdict(report.phases))


TRAINING = Mode(
    flag=None,
    title="training and prefill",
    options={ROUNDS: None, PRESET: "cpu", DEVICE: "cpu", _IMPLEMENTATION: "local"},
    run=_measure,
)
