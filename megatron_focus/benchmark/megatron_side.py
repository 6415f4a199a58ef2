"""This project's side of the benchmark: the trainer's own step, and a forward pass, under any setting."""

from dataclasses import replace

import torch
from megatron.core.utils import unwrap_model
from torch import Tensor

from data_pipeline.anyres import normalise, visual_token_count
from data_pipeline.loading.steps import StepReport
from megatron_focus.benchmark.presets import LEARNING_RATE, Preset, Setting
from megatron_focus.benchmark.work import Work, work_of
from megatron_focus.benchmark.workload import image_token_id, prefill_row, training_row
from megatron_focus.config.schema import ModelConfig, OptimizerSettings, ParallelConfig, RunConfig, TrainingConfig
from megatron_focus.config.validation import validate
from megatron_focus.models.focus_llava import FocusLLaVA, RowInputs
from megatron_focus.observability.metrics import StepRecorder, loss_tokens
from megatron_focus.samplers.draws import draw
from megatron_focus.samplers.window_plan import plan_windows
from megatron_focus.training.balance_loss import row_balance_coefficient
from megatron_focus.training.batch import StepInputs, on_device
from megatron_focus.training.build import build_trainable
from megatron_focus.training.step import train_step
from megatron_focus.training.step_guard import StepGuard

_ROW_BUDGET = 6144
"""Only for the count of rows that are too full, which is not looked at here."""


class MegatronSide:
    """One model for all settings, so that each has the same weights."""

    def __init__(self, preset: Preset, device: torch.device, transformer_impl: str) -> None:
        """Build the model on one rank; Megatron's parallel state has been initialised.

        Raises:
            ValueError: the implementation is not installed.
        """
        self.preset, self.device = preset, device
        config = RunConfig(
            model=replace(preset.model, transformer_impl=transformer_impl),
            parallel=ParallelConfig(use_distributed_optimizer=False),  # one rank has no peer to share the state with
            optimizer=OptimizerSettings(lr=LEARNING_RATE, lr_warmup_fraction=0.0, lr_decay_style="constant"),
            training=TrainingConfig(precision="bf16" if device.type == "cuda" else "fp32"),
        )
        validate(config, world_size=1)
        self.parts = build_trainable(config, image_token_id(preset))
        self.model: FocusLLaVA = unwrap_model(self.parts.chunks[0])
        sampler = self.model.vision_sampler
        assert sampler is not None
        self.sampler = sampler
        self.row = on_device(training_row(preset), device)
        self.prefill_row = prefill_row(self.row)
        self._spread_choices()
        self.parts.optimizer.reload_model_params()

    def prefill(self, setting: Setting) -> None:
        """Forward pass without gradients, up to the head on the last token of each sample."""
        self._switch(setting, training=False)
        with torch.no_grad():
            self.model(self._inputs(setting, training=False))

    def train(self, setting: Setting) -> Work:
        """One step of the trainer: plans, forward, backward, gradient norm, AdamW, metrics."""
        self._switch(setting, training=True)
        model = self._config(setting)
        inputs = StepInputs(
            num_microbatches=1,
            rows=[self._inputs(setting, training=True)],
            baseline_visual_tokens=self.preset.samples * visual_token_count(*self.preset.image_size, model.image),
            report=StepReport(),
            wait_seconds=None,
        )
        parts, recorder = self.parts, StepRecorder(model, _ROW_BUDGET)
        metrics = train_step(parts.chunks, parts.optimizer, parts.scheduler, inputs, recorder, self.device, StepGuard())
        return work_of(metrics.totals, self.preset, setting, training=True)

    def prefill_work(self, setting: Setting) -> Work:
        """What ``prefill`` computes."""
        self._switch(setting, training=False)
        recorder = StepRecorder(self._config(setting), _ROW_BUDGET)
        inputs = self._inputs(setting, training=False)
        with torch.no_grad():
            result = self.model(inputs)
        recorder.add(inputs, result)
        recorder.add_loss(result.output.sum(), loss_tokens(result), len(result.output))
        totals = {name: float(value) for name, value in recorder.totals.items()}
        return work_of(totals, self.preset, setting, training=False)

    @torch.no_grad()
    def logits(self, setting: Setting) -> Tensor:
        """Logits of every token of the row [tokens, vocabulary], float32."""
        self._switch(setting, training=False)
        output = self.model(self._inputs(setting, training=False), return_logits=True).output
        return output[:, 0, : self.preset.model.language.vocab_size].float()

    def _config(self, setting: Setting) -> ModelConfig:
        model = self.preset.model
        return replace(
            model,
            vision_sampler=replace(model.vision_sampler, enabled=setting.vision),
            text_sampler=replace(model.text_sampler, mode=model.text_sampler.mode if setting.text else "off"),
        )

    def _switch(self, setting: Setting, *, training: bool) -> None:
        self.model.train(training)
        self.model.vision_sampler = self.sampler if setting.vision else None

    def _inputs(self, setting: Setting, *, training: bool) -> RowInputs:
        """The row with its plan and draws, as the trainer's feeder makes them."""
        model = self._config(setting)
        row, sampler = self.row if training else self.prefill_row, model.vision_sampler
        plan = plan_windows(
            row.image_sizes,
            model.image,
            sampler.window if sampler.enabled else 1,
            sampler.scales if sampler.enabled else [],
            sampler.global_view if sampler.enabled else "keep",
        )
        draws = draw(model.text_sampler, row, seed=0, step=0, training=training)
        labels = row.loss_tokens
        return RowInputs(
            row=row,
            plan=plan.to(self.device),
            draws=draws.to(self.device),
            balance_coefficient=row_balance_coefficient(sampler, plan.num_windows, plan.num_windows, labels),
            loss_tokens=labels,
        )

    @torch.no_grad()
    def _spread_choices(self) -> None:
        """Give the selector a random weight whose logits have mean 0 and variance 1 for every scale.

        A fresh selector sends almost all windows to one scale, and no trained one exists for this model. With near
        uniform choices the sampler keeps about what the paper reports (49 %, its Table 6).
        """
        vision = Setting(name="", vision=True)
        self._switch(vision, training=False)
        inputs = self._inputs(vision, training=False)
        pixels = normalise(self.row.tiles, self.model.config.params_dtype)
        features = self.model.projector(self.model.vision_tower(pixels))
        weight, bias = self.sampler.selector.weight, self.sampler.selector.bias
        generator = torch.Generator().manual_seed(0)
        weight.copy_(torch.randn(weight.shape, generator=generator))
        bias.zero_()
        logits = self.sampler.selector_logits(self.sampler.scores(features, inputs.plan))[inputs.plan.window_counted]
        std, mean = torch.std_mean(logits, dim=0)
        weight.div_(std[:, None])
        bias.copy_(-mean / std)
