"""The training loop."""

import math
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.utils import unwrap_model
from transformers import PreTrainedTokenizerFast

from data_pipeline.conversations.tokenizer import load_tokenizer
from data_pipeline.loading.loader import StepLoader
from megatron_focus.checkpoint.state import (
    Trainable,
    TrainState,
    check_same_schedule,
    load_checkpoint,
    load_weights,
    loader_state,
    save_checkpoint,
)
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.loading import dump_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.models.builder import build_model
from megatron_focus.observability.metrics import StepMetrics, StepRecorder
from megatron_focus.observability.report import TensorBoard, device_peak_tflops, progress_line
from megatron_focus.training.batch import StepFeeder, StepInputs
from megatron_focus.training.modules import freeze_modules
from megatron_focus.training.optimizer import build_optimizer, build_scheduler
from megatron_focus.training.step import train_step


class Trainer:
    """A run: built from a configuration, continued from its newest checkpoint, trained to its end."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        """Build everything on this rank; Megatron's parallel state has been initialised."""
        self.config, self.device = config, device
        self.rank = torch.distributed.get_rank()
        self.tokenizer = _tokenizer(config)
        self.parts = build_trainable(config, self.tokenizer.image_token_id)
        self.store = CheckpointStore(config.checkpoint.save) if config.checkpoint.save else None
        self.state = self._restore()
        self.loader = self._loader()
        steps = iter(self.loader.next_step, None) if self.loader is not None else None
        self.feeder = StepFeeder(config, steps, pad_token_id=self.tokenizer.pad_token_id, device=device)
        self.sources = self._sources()
        folder = config.logging.tensorboard_dir
        writes = folder is not None and self.rank == 0
        self.board = TensorBoard(str(folder), self.state.iteration + 1) if writes else None
        self.peak_tflops = config.logging.peak_tflops or device_peak_tflops(device)

    def train(self) -> StepMetrics | None:
        """Run to ``training.train_iters`` (or ``exit_iter``); returns the last step's metrics."""
        training, checkpoint = self.config.training, self.config.checkpoint
        last = min(training.train_iters, training.exit_iter or training.train_iters)
        metrics, ended = None, "stopped after"
        try:
            while self.state.iteration < last:
                metrics = self._step()
                if self.state.iteration % checkpoint.save_interval == 0 or self.state.iteration == last:
                    self.save()
            ended = "finished"
        finally:
            self.close()
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.state.left_out.items()))
            left_out = f", left out: {reasons} (listed above)" if reasons else ""
            self._say(f"{ended} {self.state.iteration} steps, {self.state.consumed_samples:,} samples{left_out}")
        return metrics

    def _step(self) -> StepMetrics:
        started = time.perf_counter()
        inputs = self.feeder.next_step(self.state.iteration)
        recorder = StepRecorder(self.config.model, self.config.data.max_sequence_length, self.sources)
        metrics = train_step(
            self.parts.chunks, self.parts.optimizer, self.parts.scheduler, inputs, recorder, self.device, started
        )
        self._advance(inputs, metrics)
        return metrics

    def close(self) -> None:
        """End the reading processes and the event file."""
        if self.loader is not None:
            self.loader.close()
        if self.board is not None:
            self.board.close()

    def save(self) -> None:
        """Write a checkpoint, if the run has a folder for them (collective)."""
        if self.store is None:
            return
        # Every rank must save the same plain values, and only reading ranks know where the loader stands.
        shared = [self.state.loader]
        torch.distributed.broadcast_object_list(shared, src=0)
        self.state.loader = shared[0]
        path = save_checkpoint(
            self.store, self.parts, self.state, dump_config(self.config), self.config.checkpoint.keep_last
        )
        self._say(f"saved {path}")

    def _restore(self) -> TrainState:
        newest = self.store.latest() if self.store is not None else None
        if newest is not None:
            check_same_schedule(newest, self.config)
            state = load_checkpoint(newest, self.parts)
            self._say(f"continuing from {newest} at step {state.iteration}")
            return state
        if self.config.checkpoint.pretrained is not None:
            load_weights(_checkpoint_folder(self.config.checkpoint.pretrained), self.parts)
            self._say(f"starting from the weights of {self.config.checkpoint.pretrained}")
        return TrainState()

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
        )

    def _sources(self) -> list[str]:
        """Names of the data sets, on all ranks."""
        shared = [self.loader.manifest.source_names if self.loader is not None else None]
        torch.distributed.broadcast_object_list(shared, src=0)
        return shared[0] or []

    def _advance(self, inputs: StepInputs, metrics: StepMetrics) -> None:
        """Count the step as done and report it.

        Raises:
            FloatingPointError: the loss or the gradient norm is not finite; the last checkpoint is from before it.
        """
        if not (math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm)):
            raise FloatingPointError(
                f"step {self.state.iteration + 1}: loss {metrics.loss}, gradient norm {metrics.grad_norm}"
            )
        for sample in inputs.report.skipped:
            print(f"left out ({sample.reason}): {sample.message}", file=sys.stderr, flush=True)
        if metrics.totals["skipped"]:
            self._count_left_out(inputs.report.skipped_by_reason)
        self.state.iteration += 1
        self.state.consumed_samples += round(metrics.totals["samples"])
        if self.loader is not None:
            kept, baseline = (round(metrics.totals[name]) for name in ("visual", "baseline_visual"))
            self.state.loader = asdict(self.loader.step_done(kept, baseline))
        mfu = metrics.mfu(torch.distributed.get_world_size(), self.peak_tflops)
        if self.state.iteration % self.config.logging.log_interval == 0:
            left_out = sum(self.state.left_out.values())
            self._say(progress_line(self.state.iteration, self.config.training.train_iters, metrics, mfu, left_out))
        if self.board is not None:
            self.board.write(self.state.iteration, metrics, mfu, self.state.left_out)

    def _count_left_out(self, by_reason: Counter[str]) -> None:
        """Add up the reasons of all ranks (collective)."""
        gathered: list[Counter[str]] = [Counter()] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, by_reason)
        self.state.left_out = dict(sum(gathered, Counter(self.state.left_out)))

    def _say(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)


def _tokenizer(config: RunConfig) -> PreTrainedTokenizerFast:
    """The run's tokenizer, which must fit the model's embedding."""
    assert config.data.tokenizer is not None
    tokenizer = load_tokenizer(config.data.tokenizer)
    if len(tokenizer) > config.model.language.vocab_size:
        raise ValueError(
            f"tokenizer {config.data.tokenizer} has {len(tokenizer)} tokens, more than "
            f"model.language.vocab_size={config.model.language.vocab_size}"
        )
    return tokenizer


def build_trainable(config: RunConfig, image_token_id: int) -> Trainable:
    """Model chunks wrapped for data parallelism, optimizer and schedule of this rank."""
    parallel = config.parallel
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    models = build_model(config.model, parallel, image_token_id=image_token_id, dtype=dtype)
    freeze_modules(models, config.optimizer.freeze)
    data_parallel = DistributedDataParallelConfig(
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        grad_reduce_in_fp32=True,
    )
    # Only the first chunk's gradients are still being made when its bucket could be reduced.
    chunks = [
        DistributedDataParallel(model.config, data_parallel, model, disable_bucketing=i > 0)
        for i, model in enumerate(models)
    ]
    optimizer = build_optimizer(config, chunks)
    for chunk in chunks:
        transformer = unwrap_model(chunk).config
        transformer.finalize_model_grads_func = finalize_model_grads
        if parallel.overlap_grad_reduce:
            transformer.no_sync_func = chunk.no_sync if len(chunks) == 1 else [c.no_sync for c in chunks]
    return Trainable(chunks=chunks, optimizer=optimizer, scheduler=build_scheduler(config, optimizer))


def _checkpoint_folder(path: str) -> Path:
    """A checkpoint's folder, or the newest in a run's folder."""
    return CheckpointStore(path).latest() or Path(path)
