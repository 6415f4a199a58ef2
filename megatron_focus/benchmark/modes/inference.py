"""``--inference``: a release beside transformers' LLaVA-NeXT with the same weights."""

import argparse
import os
from typing import Any

from megatron_focus.benchmark.modes.mode import Mode, Option
from megatron_focus.benchmark.modes.shared import DEVICE, PRESET, ROUNDS, check_cuda, positive
from megatron_focus.benchmark.presets import PRESETS

_BATCH_SIZES = Option("--batch-sizes", "prompts of a batch", {"type": positive, "nargs": "+", "metavar": "N"})
_NEW_TOKENS = Option("--new-tokens", "tokens to decode in a run", {"type": positive, "metavar": "N"})


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch  # here, as all below: the command line needs none of it

    from megatron_focus.benchmark.inference.run import run
    from megatron_focus.benchmark.inference.table import LEGEND, format_table, verdict

    check_cuda(options.device)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    report = run(
        PRESETS[options.preset],
        torch.device(options.device),
        batch_sizes=options.batch_sizes,
        new_tokens=options.new_tokens,
        rounds=options.rounds,
    )
    print(f"inference, preset {report.preset}: {report.environment}")
    for table in report.tables:
        print("\n" + format_table(table))
    print("\n" + LEGEND + "\n")
    print(verdict(report.tables))
    return report.to_json()


INFERENCE = Mode(
    flag="--inference",
    title="inference with a release",
    options={ROUNDS: 7, PRESET: "cpu", DEVICE: "cpu", _BATCH_SIZES: (1, 8), _NEW_TOKENS: 16},
    run=_measure,
)
