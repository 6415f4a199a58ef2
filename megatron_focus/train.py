"""``python -m megatron_focus.train CONFIG [section.key=value ...]``: train a model.

Example:
    torchrun --nproc_per_node=8 -m megatron_focus.train examples/quickstart/config.yaml optimizer.lr=2e-5
"""

import argparse
import os
import sys
from pathlib import Path

from megatron_focus.config.loading import dump_config, load_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.config.validation import validate, validate_data
from megatron_focus.parallel.initialize import initialize, shut_down, world_size_from_launcher
from megatron_focus.training.outcome import Outcome
from megatron_focus.training.signals import StopRequest


def main(arguments: list[str] | None = None) -> int:
    """Load, check, train; exit code 2 for a configuration or data with which every further try would fail too."""
    parser = argparse.ArgumentParser(
        prog="python -m megatron_focus.train",
        description="Train FocusLLaVA. Start one process per GPU, with torchrun or srun.",
        epilog="example: torchrun --nproc_per_node=2 -m megatron_focus.train "
        "examples/quickstart/config.yaml training.train_iters=10",
    )
    parser.add_argument("config", help="YAML file; its key 'base' names a file to inherit from")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    parser.add_argument("--dry-run", action="store_true", help="check and print the resolved configuration, then stop")
    parser.add_argument(
        "--world-size", type=int, help="with --dry-run: check for this many ranks (default: the launcher's)"
    )
    parser.add_argument(
        "--outcome", type=Path, metavar="FILE", help="write how the run ended as JSON; none after a crash"
    )
    parser.add_argument(
        "--life", help="name of this start of the job, e.g. job id and restart count: an older one may save no more"
    )
    options = parser.parse_args(arguments)
    if options.world_size is not None and not options.dry_run:
        parser.error("--world-size goes with --dry-run; a run has the ranks that its launcher starts")
    try:
        config = load_config(options.config, options.overrides)
        validate(config, options.world_size or world_size_from_launcher())
        validate_data(config)
        if options.dry_run:
            print(dump_config(config), end="")
            return 0
        with StopRequest() as stop:
            outcome = _run(config, stop, options.life)
        if options.outcome is not None and os.environ.get("RANK", "0") == "0":
            outcome.write(options.outcome)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        # The process group is left alone: other ranks may wait in a collective, and the launcher ends them.
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(config: RunConfig, stop: StopRequest, life: str | None) -> Outcome:
    from megatron_focus.training.trainer import Trainer  # after validation: Megatron takes seconds to import

    # A hang has shown its stacks before the process groups lose patience.
    device = initialize(config.parallel, config.training.seed, 2 * config.training.step_timeout_minutes)
    outcome = Trainer(config, device, life).train(stop)
    shut_down()
    return outcome


if __name__ == "__main__":
    sys.exit(main())
