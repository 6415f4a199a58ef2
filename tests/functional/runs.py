"""What one rank does in the tests of whole runs."""

import contextlib
import hashlib
import io
import os
import signal
from dataclasses import dataclass, field

from megatron_focus.checkpoint import saver
from megatron_focus.config.schema import RunConfig
from megatron_focus.config.validation import validate
from megatron_focus.parallel.initialize import initialize
from megatron_focus.training import trainer as trainer_module
from megatron_focus.training.outcome import Outcome
from megatron_focus.training.signals import StopRequest
from tests.distributed.assemble import Shard, local_shards


@dataclass
class RunResult:
    """What a rank saw of a run."""

    losses: list[float] = field(default_factory=list)
    effective: list[float] = field(default_factory=list)
    weights: list[Shard] = field(default_factory=list)
    outcome: Outcome | None = None
    loader: dict | None = None
    fed: dict[int, list[tuple]] = field(default_factory=dict)
    """Step -> rows, on ranks that read."""
    said: list[str] = field(default_factory=list)
    """What went to standard error, and progress lines."""


class _Watched(trainer_module.Trainer):
    def _say(self, line):
        super()._say(line)
        self.result.said.append(line)

    def _advance(self, inputs, metrics):
        super()._advance(inputs, metrics)
        self.result.losses.append(metrics.loss)
        self.result.effective.append(metrics.effective_tokens)


def train(config: RunConfig, stop: StopRequest | None = None) -> RunResult:
    """A whole run of the real trainer."""
    validate(config, int(os.environ["WORLD_SIZE"]))
    device = initialize(config.parallel, config.training.seed)
    _Watched.result = RunResult()
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        trainer = _Watched(config, device)
        trainer.result.outcome = trainer.train(stop)
    trainer.result.said += errors.getvalue().splitlines()
    trainer.result.weights = local_shards(trainer.parts.chunks)
    trainer.result.loader = trainer.state.loader
    return trainer.result


class _Recorded(_Watched):
    """Also remembers what it was fed: for each row the samples' ids and a hash of their tokens, labels and pixels."""

    def __init__(self, config, device, kill_in_step):
        super().__init__(config, device)
        self.kill_in_step = kill_in_step
        next_step = self.feeder.next_step

        def recorded(step):
            inputs = next_step(step)
            if self.loader is not None:
                self.result.fed[step + 1] = [_fingerprint(inputs.row) for inputs in inputs.rows]
            if step + 1 == self.kill_in_step:
                self.checkpoints.wait()  # what is being written is complete, however long a process took to start
                os.kill(os.getpid(), signal.SIGKILL)
            return inputs

        self.feeder.next_step = recorded


def _fingerprint(row):
    digest = hashlib.sha256()
    for tensor in (row.tokens, row.labels, row.user_turn, row.tiles):
        digest.update(tensor.contiguous().numpy().tobytes())
    return tuple(row.sample_ids), digest.hexdigest()


def train_recorded(config: RunConfig, kill_in_step: int | None = None) -> RunResult:
    """A whole run that remembers what it was fed, killed without warning in the middle of a step."""
    validate(config, int(os.environ["WORLD_SIZE"]))
    device = initialize(config.parallel, config.training.seed)
    _Watched.result = RunResult()
    _Recorded(config, device, kill_in_step).train()
    return _Watched.result


def train_and_die_while_saving(config: RunConfig, at_iteration: int) -> None:
    """A run whose rank 0 is killed after the tensors of a checkpoint were written and before it became visible."""
    gather_sums = saver._gather_sums

    def die_or_gather_sums(folder):
        if folder.name.startswith(f"iter_{at_iteration:07d}"):
            os.remove(folder / "__0_0.distcp")
            os.kill(os.getpid(), signal.SIGKILL)
        gather_sums(folder)

    saver._gather_sums = die_or_gather_sums
    train(config)
