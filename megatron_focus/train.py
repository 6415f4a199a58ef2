"""``python -m megatron_focus.train CONFIG [section.key=value ...]``: train a model.

Example:
    torchrun --nproc_per_node=8 -m megatron_focus.train examples/quickstart/config.yaml optimizer.lr=2e-5
"""

import argparse
import sys
from pathlib import Path

from data_pipeline.errors import SampleError
from megatron_focus.config.loading import dump_config, load_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.parallel.launcher import rank_from_launcher, world_size_from_launcher
from megatron_focus.program import run_program


def main(arguments: list[str] | None = None) -> int:
    """Load, check, train.

    Exit code 2 where a further try would fail too: a configuration, data or weights that cannot be trained on, steps
    that are skipped one after another, a job that was started again elsewhere. 1 for what may go away.
    """
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
    options = parser.parse_intermixed_args(arguments)
    if options.world_size is not None and not options.dry_run:
        parser.error("--world-size goes with --dry-run; a run has the ranks that its launcher starts")
    # After parsing: torch takes seconds to import.
    from megatron_focus.checkpoint.agreement import SupersededError
    from megatron_focus.config.validation import validate, validate_data

    try:
        config = load_config(options.config, options.overrides)
        world_size = options.world_size or world_size_from_launcher()
        validate(config, world_size)
        validate_data(config)
        if rank_from_launcher() == 0:
            _describe(config, world_size, all_of_it=options.dry_run)
        if options.dry_run:
            print(dump_config(config), end="")
            return 0
        _run(config, options.outcome, options.life)
    except (ValueError, FileNotFoundError, PermissionError, FloatingPointError, SupersededError) as error:
        # The process group is left alone: other ranks may wait in a collective, and the launcher ends them.
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _describe(config: RunConfig, world_size: int, *, all_of_it: bool) -> None:
    from megatron_focus.planning.summary import idle_ranks, layout_lines  # here, as in _run

    # As comments: what a dry run prints can be run.
    for line in layout_lines(config, world_size) if all_of_it else ():
        print(f"# {line}")
    if (message := idle_ranks(config, world_size)) is not None:
        print(f"warning: {message}", file=sys.stderr)


def _run(config: RunConfig, outcome_file: Path | None, life: str | None) -> None:
    # After validation: Megatron takes seconds to import. Checkpoint writers import this file again and need none of it.
    from megatron_focus.models.attention_backend import attention_of_run
    from megatron_focus.parallel.determinism import require_determinism
    from megatron_focus.parallel.initialize import initialize, shut_down
    from megatron_focus.training.signals import StopRequest
    from megatron_focus.training.trainer import Trainer

    outcome_file = outcome_file if rank_from_launcher() == 0 else None
    if outcome_file is not None:
        outcome_file.unlink(missing_ok=True)  # of an earlier run: a crash must not look like its end
    with StopRequest() as stop:
        if config.training.deterministic:
            require_determinism()
        # A hang has shown its stacks before the process groups lose patience.
        device = initialize(config.parallel, config.training.seed, 2 * config.training.step_timeout_minutes)
        trainer = Trainer(config, device, life)
        if rank_from_launcher() == 0:
            print(f"attention: {'; '.join(attention_of_run(config))}", flush=True)
        try:
            outcome = trainer.train(stop)
        except SampleError:
            raise
        except (ValueError, FileNotFoundError, PermissionError) as error:
            raise RuntimeError(f"after step {trainer.state.iteration}: {error}") from error  # perhaps not the next time
        if outcome_file is not None:
            outcome.write(outcome_file)
        shut_down()


if __name__ == "__main__":
    run_program(main)
