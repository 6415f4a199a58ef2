"""The checkpoints of a run: begun at a step, written while training goes on, reported when complete."""

import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import torch

from megatron_focus.checkpoint.agreement import SaveError, on_rank_0
from megatron_focus.checkpoint.saver import CheckpointSaver
from megatron_focus.checkpoint.state import TrainState, start_checkpoint
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.loading import dump_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.parallel.parameter_gather import gather_parameters
from megatron_focus.training.build import Trainable
from megatron_focus.training.step_guard import weights_are_finite


class RunCheckpoints:
    """Where ``checkpoint.save`` is not set, nothing is saved and every method does nothing. All are collective.

    One that cannot be written costs nothing but the chance to continue from there: training goes on, and the next
    interval tries again. Only the last one must succeed.

    Args:
        config: of the run.
        device: device of this rank.
        life: name of this start of the job, the same on all ranks; a random one if None. See ``CheckpointStore``.
        say: tells people on rank 0.

    Raises:
        SupersededError: the job was started again elsewhere.
    """

    def __init__(self, config: RunConfig, device: torch.device, life: str | None, say: Callable[[str], None]) -> None:
        self.config, self.device, self._say = config, device, say
        self.store: CheckpointStore | None = None
        self._saver: CheckpointSaver | None = None
        self._not_saved: SaveError | None = None
        if config.checkpoint.save is not None:
            self.store = CheckpointStore(config.checkpoint.save, life or on_rank_0(lambda: uuid.uuid4().hex[:8]))
            self.store.take_over()
            self._saver = CheckpointSaver(self.store, config.checkpoint.keep_last)

    def begin(self, parts: Trainable, state: TrainState) -> None:
        """Begin to write one of ``state.iteration``, after the one before it is complete.

        There may be one already, if an earlier start of the job finished it after this one had looked for the newest.
        """
        if self._saver is None or self.store is None:
            return
        self.wait()
        if state.iteration in on_rank_0(self.store.iterations):
            return
        try:
            gather_parameters(parts.chunks)
            if not weights_are_finite(parts.chunks, self.device):
                raise SaveError("some weights are not finite, and must not take the place of sound ones")
            # Every rank must save the same plain values, and only reading ranks know where the loader stands.
            shared = [state.loader]
            torch.distributed.broadcast_object_list(shared, src=0)
            state.loader = shared[0]
            start_checkpoint(self._saver, parts, state, dump_config(self.config))
        except SaveError as error:
            self._note_failure(error)

    def poll(self) -> None:
        """Report one that has become complete, or could not be written."""
        if self._saver is not None:
            self._report(self._saver.poll)

    def wait(self) -> None:
        """``poll``, once the one being written has ended."""
        if self._saver is not None:
            self._report(self._saver.wait)

    def finish(self, parts: Trainable, state: TrainState) -> None:
        """Leave one of ``state.iteration``.

        Raises:
            SaveError: it cannot be written.
        """
        if self.store is None:
            return
        self.begin(parts, state)
        self.wait()
        if state.iteration not in on_rank_0(self.store.iterations):
            newest = self.store.latest()
            raise SaveError(f"step {state.iteration} is not saved ({self._not_saved}); the newest one is {newest}")

    def _report(self, ended: Callable[[], Path | None]) -> None:
        try:
            path = ended()
        except SaveError as error:
            self._note_failure(error)
        else:
            if path is not None:
                self._say(f"saved {path}")

    def _note_failure(self, error: SaveError) -> None:
        self._not_saved = error
        if torch.distributed.get_rank() == 0:
            print(f"checkpoint not saved, training goes on: {error}", file=sys.stderr, flush=True)
