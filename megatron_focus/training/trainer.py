"""The training loop."""

import contextlib
import sys
import time
from collections import Counter
from dataclasses import asdict

import torch
from megatron.core import parallel_state

from data_pipeline.loading.loader import StepLoader
from megatron_focus.checkpoint.state import loader_state
from megatron_focus.config.schema import RunConfig
from megatron_focus.observability.device_peak import device_peak_tflops
from megatron_focus.observability.metrics import StepMetrics, StepRecorder
from megatron_focus.observability.report import TensorBoard, progress_line
from megatron_focus.parallel.parameter_gather import gather_parameters
from megatron_focus.training.batch import StepFeeder, StepInputs
from megatron_focus.training.build import build_trainable, run_tokenizer
from megatron_focus.training.fused_adam import NAMES, chosen_adam
from megatron_focus.training.hang_detection import HangDetection
from megatron_focus.training.outcome import Outcome
from megatron_focus.training.restore import restore
from megatron_focus.training.run_checkpoints import RunCheckpoints
from megatron_focus.training.sample_cost import sample_cost
from megatron_focus.training.signals import StopRequest
from megatron_focus.training.step import train_step
from megatron_focus.training.step_guard import StepGuard


class Trainer:
    """A run: built from a configuration, continued from its newest checkpoint, trained to its end."""

    def __init__(self, config: RunConfig, device: torch.device, life: str | None = None) -> None:
        """Build everything on this rank; Megatron's parallel state has been initialised.

        Args:
            config: the validated configuration.
            device: device of this rank.
            life: name of this start of the job, the same on all ranks; a random one if None. See ``CheckpointStore``.
        """
        self.config, self.device = config, device
        self.rank = torch.distributed.get_rank()
        self.hang_detection = HangDetection(config.training.step_timeout_minutes)
        self.hang_detection.step_begins()
        self.tokenizer = run_tokenizer(config)
        self.parts = build_trainable(config, self.tokenizer.image_token_id)
        self._say(f"the optimizer is the fused AdamW of {NAMES[chosen_adam(config.optimizer.fused_adam)]}")
        self.checkpoints = RunCheckpoints(config, device, life, self._say)
        self.state = restore(config, self.checkpoints.store, self.parts, self._say)
        self.guard = StepGuard(
            config.training.loss_spike_factor,
            config.training.max_skipped_steps,
            self.state.usual_loss,
            self.state.skipped_in_a_row,
        )
        self.begun = self.state.iteration
        self.loader = self._loader()
        steps = iter(self.loader.next_step, None) if self.loader is not None else None
        self.feeder = StepFeeder(config, steps, pad_token_id=self.tokenizer.pad_token_id, device=device)
        self.sources = self._sources()
        folder = config.logging.tensorboard_dir
        writes = folder is not None and self.rank == 0
        self.board = TensorBoard(str(folder), self.state.iteration + 1) if writes else None
        stated = config.logging.peak_tflops
        self.peak_tflops = device_peak_tflops(device) if stated is None else stated

    def train(self, stop: StopRequest | None = None) -> Outcome:
        """Run to ``training.train_iters`` (or ``exit_iter``), or until ``stop`` is asked for; both leave a checkpoint.

        Raises:
            FloatingPointError: more than ``training.max_skipped_steps`` updates in a row could not be applied.
            SaveError: the last checkpoint could not be written.
            SupersededError: the job was started again elsewhere.
        """
        training = self.config.training
        last = min(training.train_iters, training.exit_iter or training.train_iters)
        status, ended = "finished", "stopped after"
        try:
            while self.state.iteration < last:
                self.hang_detection.step_begins()
                if stop is not None and stop.agreed(self.device):
                    self._say(f"asked to stop{f' by {stop.received.name}' if stop.received else ''}")
                    status = "interrupted"
                    break
                self._step()
                self.checkpoints.poll()
                if self.state.iteration % self.config.checkpoint.save_interval == 0 and self.state.iteration < last:
                    self.checkpoints.begin(self.parts, self.state)
            self.hang_detection.step_begins()
            gather_parameters(self.parts.chunks)
            if self.state.iteration > self.begun:
                self.checkpoints.finish(self.parts, self.state)
            ended = "interrupted after" if status == "interrupted" else status
        finally:
            self.close()
            self._say(self._summary(ended))
            self.hang_detection.ended()
        return Outcome(status=status, iteration=self.state.iteration, train_iters=training.train_iters)

    def _step(self) -> None:
        started = time.perf_counter()
        inputs = self.feeder.next_step(self.state.iteration)
        config = self.config
        recorder = StepRecorder(
            config.model, config.data.max_sequence_length, self.sources, freeze=config.optimizer.freeze
        )
        metrics = train_step(
            self.parts.chunks,
            self.parts.optimizer,
            self.parts.scheduler,
            inputs,
            recorder,
            self.device,
            self.guard,
            started,
        )
        self._advance(inputs, metrics)

    def close(self) -> None:
        """End the reading processes and the event file."""
        if self.loader is not None:
            self.loader.close()
        if self.board is not None:
            self.board.close()

    def _loader(self) -> StepLoader | None:
        if not StepFeeder.reads_data():
            return None
        return StepLoader(
            self.config.data,
            self.config.model.image,
            global_batch_size=self.config.training.global_batch_size,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
            state=loader_state(self.state.loader),
            device=self.device,
            global_views=self.config.model.vision_sampler.global_views,
            cost=sample_cost(self.config.model, freeze=self.config.optimizer.freeze, seed=self.config.training.seed),
        )

    def _sources(self) -> list[str]:
        """Names of the data sets, on all ranks."""
        shared = [self.loader.manifest.source_names if self.loader is not None else None]
        torch.distributed.broadcast_object_list(shared, src=0)
        return shared[0] or []

    def _advance(self, inputs: StepInputs, metrics: StepMetrics) -> None:
        """Count the step as done and report it.

        Raises:
            FloatingPointError: too many updates in a row could not be applied; the last checkpoint is from before them.
        """
        for sample in inputs.report.skipped:
            with contextlib.suppress(OSError):  # this rank's log may lie on a full disk
                print(f"left out ({sample.reason}): {sample.message}", file=sys.stderr, flush=True)
        if metrics.totals["skipped"]:
            self._count_left_out(inputs.report.skipped_by_reason)
        self.state.iteration += 1
        self.state.consumed_samples += round(metrics.totals["samples"])
        self.state.usual_loss, self.state.skipped_in_a_row = self.guard.usual_loss, self.guard.in_a_row
        if self.loader is not None:
            kept, baseline = (round(metrics.totals[name]) for name in ("visual", "baseline_visual"))
            self.state.loader = asdict(self.loader.step_done(kept, baseline))
        mfu = metrics.mfu(torch.distributed.get_world_size(), self.peak_tflops)
        if self.state.iteration % self.config.logging.log_interval == 0:
            left_out = sum(self.state.left_out.values())
            self._say(progress_line(self.state.iteration, self.config.training.train_iters, metrics, mfu, left_out))
        if metrics.skipped is not None:
            self._skip(inputs, metrics.skipped)
        if self.board is not None:
            self.board.write(self.state.iteration, metrics, mfu, self.state.left_out, self.state.skipped_steps)

    def _skip(self, inputs: StepInputs, reason: str) -> None:
        """Report a step whose update was not applied (collective)."""
        self.state.skipped_steps += 1
        rows = inputs.rows if self.loader is not None else []  # others know the samples' numbers alone
        ids = [sample for row in rows for sample in row.row.sample_ids]
        gathered: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(gathered, ids)
        samples = ", ".join(sorted({sample for rank in gathered for sample in rank}))
        line = f"step {self.state.iteration} skipped: {reason}; its samples: {samples}"
        if self.rank == 0:
            print(line, file=sys.stderr, flush=True)
        if self.guard.has_enough:
            self.checkpoints.wait()
            raise FloatingPointError(f"{self.guard.in_a_row} steps in a row were skipped, the last: {line}")

    def _count_left_out(self, by_reason: Counter[str]) -> None:
        """Add up the reasons of all ranks (collective)."""
        gathered: list[Counter[str]] = [Counter()] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, by_reason)
        self.state.left_out = dict(sum(gathered, Counter(self.state.left_out)))

    def _summary(self, ended: str) -> str:
        """The run in one line."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.state.left_out.items()))
        left_out = f", left out: {reasons} (listed above)" if reasons else ""
        skipped = f", {self.state.skipped_steps} steps skipped (listed above)" if self.state.skipped_steps else ""
        return f"{ended} {self.state.iteration} steps, {self.state.consumed_samples:,} samples{left_out}{skipped}"

    def _say(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)
