"""One training step on Megatron's schedules."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import unwrap_model
from torch import Tensor

from megatron_focus.models.focus_llava import RowInputs, StageOutput
from megatron_focus.observability.metrics import StepMetrics, StepRecorder, loss_tokens
from megatron_focus.parallel.parameter_gather import finish_parameter_gather, start_parameter_gather
from megatron_focus.training.balance_loss import BatchBalance
from megatron_focus.training.batch import StepInputs
from megatron_focus.training.step_guard import StepGuard


def train_step(
    chunks: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    inputs: StepInputs,
    recorder: StepRecorder,
    device: torch.device,
    guard: StepGuard,
    started: float | None = None,
) -> StepMetrics:
    """Forward and backward over all microbatches, then one optimizer and scheduler step, if the guard lets it pass.

    Args:
        chunks: this rank's model chunks.
        optimizer: Megatron's optimizer over them.
        scheduler: its schedule.
        inputs: the step's microbatches.
        recorder: collects the step's figures.
        device: device of this rank.
        guard: judges the step by its loss and gradient norm.
        started: ``time.perf_counter()`` when the step began, its wait for data included; now if None.

    Returns:
        the step's metrics, summed over all ranks.
    """
    start = time.perf_counter() if started is None else started
    lr = scheduler.get_lr({})  # of the groups without a rate of their own
    forward_backward(chunks, optimizer, inputs, recorder)
    recorder.add_step(inputs.baseline_visual_tokens, inputs.report, inputs.wait_seconds)
    metrics = recorder.over_all_ranks(device)
    # The norm is taken before the update, which takes it once more to clip: a bad step must not reach the weights.
    optimizer.prepare_grads()
    metrics.grad_norm, metrics.lr = float(optimizer.get_grad_norm() or 0.0), lr
    metrics.skipped = guard.objection(metrics.loss, metrics.grad_norm)
    if metrics.skipped is None:
        optimizer.step()
        scheduler.step(increment=1)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    metrics.seconds = time.perf_counter() - start
    return metrics


def forward_backward(
    chunks: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    inputs: StepInputs,
    recorder: StepRecorder,
) -> None:
    """Gradients of the step's loss: mean over loss tokens, plus the balance loss."""
    balance = BatchBalance(recorder.model.vision_sampler)
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    start_parameter_gather(chunks)
    iterators = [iter(inputs.rows) if unwrap_model(chunk).pre_process else None for chunk in chunks]
    get_forward_backward_func()(
        forward_step_func=partial(_forward_step, recorder=recorder, balance=balance),
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=inputs.num_microbatches,
        seq_length=1,  # unused: stages exchange the length of each tensor before the tensor
        micro_batch_size=1,
        forward_only=False,
    )
    finish_parameter_gather(chunks)
    selector = unwrap_model(chunks[0]).selector
    if recorder.model.vision_sampler.balance_scope == "batch" and selector is not None:
        balance.add_gradient(selector, parallel_state.get_data_parallel_group())


def _forward_step(
    iterator: Iterator[RowInputs] | None,
    model: DistributedDataParallel,
    *,
    recorder: StepRecorder,
    balance: BatchBalance,
) -> tuple[Tensor, Callable]:
    inputs = next(iterator) if iterator is not None else None
    result: StageOutput = model(inputs)
    recorder.add(inputs, result)
    if result.visual is not None:
        balance.add(result.visual)
    return result.output, partial(_loss, result=result, recorder=recorder)


def _loss(losses: Tensor, *, result: StageOutput, recorder: StepRecorder) -> tuple[Tensor, Tensor, dict]:
    """(sum of the losses, number of loss tokens, report): Megatron divides by the step's total, never per rank."""
    tokens = loss_tokens(result)
    total = losses.sum()
    recorder.add_loss(total, tokens, len(losses))
    return total, tokens, {}
