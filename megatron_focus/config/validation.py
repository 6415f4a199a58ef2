"""Cross-checks of a configuration: what single fields cannot know of each other.

Each refusal is one sentence that names the keys, their values and what to change. All of them are collected, so a user
sees every problem at once. ``checks`` has a file for each part.
"""

from megatron_focus.config.checks.data import data_problems
from megatron_focus.config.checks.finite import finite_problems
from megatron_focus.config.checks.installed import installation_problems
from megatron_focus.config.checks.model import model_problems
from megatron_focus.config.checks.parallel import parallel_problems
from megatron_focus.config.checks.sizes import size_problems
from megatron_focus.config.checks.training import training_problems
from megatron_focus.config.schema import RunConfig


def validate(config: RunConfig, world_size: int, *, here: bool = True) -> None:
    """Check ``config`` for a run on ``world_size`` ranks.

    Args:
        config: what is to run.
        world_size: number of ranks.
        here: whether it is to run on this machine, which must have the packages then.

    Raises:
        ValueError: at least one check failed; the message lists all of them.
    """
    # Sizes first: the other checks divide by them.
    problems = [*finite_problems(config), *size_problems(config)] or [
        *model_problems(config.model),
        *(installation_problems(config) if here else ()),
        *parallel_problems(config, world_size),
        *data_problems(config),
        *training_problems(config),
    ]
    if problems:
        raise ValueError("the configuration cannot run:\n" + "\n".join(f"  - {p}" for p in problems))


def validate_data(config: RunConfig) -> None:
    """Check what training needs beyond a computable model.

    Raises:
        ValueError: no data set or no tokenizer is given.
    """
    for key, value in (("data.path", config.data.path), ("data.tokenizer", config.data.tokenizer)):
        if value is None:
            raise ValueError(f"{key} is not set: name the folder that tools/prepare_data.py wrote or read")
