"""``--balance``: how long ranks wait for the costliest one, simulated."""

import argparse
from pathlib import Path
from typing import Any

from data_pipeline.benchmark.defaults import SCENARIOS
from megatron_focus.benchmark.modes.mode import Mode, Option
from megatron_focus.benchmark.modes.shared import positive

_SEED = 1234

_PREPARED = Option("--prepared", "data set whose lengths are taken, instead of the assumed mix", {"type": Path})
_RANKS = Option("--ranks", "data-parallel ranks", {"type": positive, "nargs": "+", "metavar": "N"})
_PER_RANK = Option("--samples-per-rank", "of a step", {"type": positive, "nargs": "+", "metavar": "N"})
_STEPS = Option("--steps", "that are simulated", {"type": positive, "metavar": "N"})


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    from data_pipeline.benchmark.balance import measure_balance  # here: the command line needs none of it
    from data_pipeline.benchmark.balance_table import format_balance
    from data_pipeline.dataset.manifest import Manifest
    from megatron_focus.config.schema import ModelConfig
    from megatron_focus.training.sample_cost import sample_cost

    report = measure_balance(
        sample_cost(ModelConfig(), seed=_SEED),
        scenarios=[(ranks, samples) for ranks in options.ranks for samples in options.samples_per_rank],
        steps=options.steps,
        manifest=Manifest.load(str(options.prepared)) if options.prepared is not None else None,
    )
    print(format_balance(report))
    return report.to_json()


BALANCE = Mode(
    flag="--balance",
    title="the balance of data-parallel ranks (simulated, Llama-3-8B)",
    options={
        _PREPARED: None,
        _RANKS: tuple(sorted({ranks for ranks, _ in SCENARIOS})),
        _PER_RANK: tuple(sorted({samples for _, samples in SCENARIOS})),
        _STEPS: 50,
    },
    run=_measure,
)
