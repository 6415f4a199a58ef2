"""Where a run begins: its newest undamaged checkpoint, given weights, or nothing."""

import sys
from collections.abc import Callable
from functools import partial

import torch

from megatron_focus.checkpoint.agreement import on_rank_0
from megatron_focus.checkpoint.checksums import damaged_files
from megatron_focus.checkpoint.state import (
    Trainable,
    TrainState,
    check_same_schedule,
    load_checkpoint,
    load_weights,
)
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.schema import RunConfig
from megatron_focus.training.build import checkpoint_folder


def restore(
    config: RunConfig, store: CheckpointStore | None, parts: Trainable, say: Callable[[str], None]
) -> TrainState:
    """Load what the run begins with into ``parts`` (collective).

    A damaged checkpoint is renamed and the one before it is taken: its steps are trained again, none is lost.

    Raises:
        ValueError: every checkpoint is damaged, or one does not fit the configuration.
        SaveError: a damaged checkpoint cannot be renamed.
        OSError: a rank cannot read a checkpoint, or sees another one than the others do.
    """
    set_aside: list[str] = []
    while store is not None and (iterations := on_rank_0(store.iterations)):
        newest = store.path(iterations[-1])
        problems = damaged_files(newest)
        if not problems:
            check_same_schedule(newest, config)
            state = load_checkpoint(newest, parts)
            say(f"continuing from {newest} at step {state.iteration}")
            return state
        aside = on_rank_0(partial(store.set_aside, iterations[-1]))
        set_aside.append(str(aside))
        if torch.distributed.get_rank() == 0:
            print(f"{newest} is damaged and renamed to {aside}: {'; '.join(problems)}", file=sys.stderr, flush=True)
    if set_aside:
        raise ValueError(
            f"no undamaged checkpoint is left ({', '.join(set_aside)}): name another checkpoint.save to start anew"
        )
    if config.checkpoint.pretrained is not None:
        new, folder = config.checkpoint.new_modules, on_rank_0(partial(checkpoint_folder, config.checkpoint.pretrained))
        if problems := damaged_files(folder):
            raise ValueError(f"checkpoint.pretrained={folder} is damaged: {'; '.join(problems)}")
        load_weights(folder, parts, new)
        say(
            f"starting from the weights of {config.checkpoint.pretrained}"
            + (f", with a new {' and '.join(new)}" if new else "")
        )
    return TrainState()
