"""What a step reports: collected where it is known, summed over all ranks once a step.

Every figure is a sum to which exactly one rank of each model replica contributes, so one all-reduce over the world
gives the totals; ratios are formed afterwards.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from megatron.core import parallel_state
from torch import Tensor

from data_pipeline.loading.steps import StepReport
from data_pipeline.row import IGNORE_INDEX
from megatron_focus.config.schema import ModelConfig, VisionSamplerConfig
from megatron_focus.models.flops import decoder_layer_flops, head_flops, training_passes, vision_flops
from megatron_focus.models.focus_llava import RowInputs, StageOutput
from megatron_focus.models.packed_layout import PAD

FIELDS = (
    "loss",
    "loss_tokens",
    "labels",
    "balance",
    "windows",
    "entropy_within_pictures",
    "samples",
    "microbatches",
    "fillers",
    "baseline_visual",
    "visual",
    "dropped",
    "dropped_passes",
    "row_tokens",
    "flops",
    "skipped",
    "over_budget",
    "data_wait",
    "readers",
)


@dataclass(kw_only=True)
class StepMetrics:
    """Totals of one step over all ranks, and the ratios users read."""

    totals: dict[str, float]
    scale_counts: dict[str, int]
    """Windows that chose each scale, by name."""
    scale_probs: dict[str, float]
    """Sum over the windows of each scale's probability, by name; empty where nothing is learned."""
    samples_by_source: dict[str, int]
    row_budget: int
    vision_sampler: VisionSamplerConfig
    grad_norm: float = 0.0
    lr: float = 0.0
    seconds: float = 0.0
    """Duration of the step, its wait for data included."""
    skipped: str | None = None
    """Why the update was not applied; None where it was."""

    @property
    def loss(self) -> float:
        """Mean cross entropy per loss token."""
        return self.totals["loss"] / max(self.totals["loss_tokens"], 1)

    @property
    def balance_loss(self) -> float:
        """alpha times the balance term (Eq. 3): of the batch, or the window-weighted mean of the microbatches'."""
        sampler, windows = self.vision_sampler, max(self.totals["windows"], 1)
        if not sampler.enabled:
            return 0.0
        if sampler.balance_scope == "row":
            return sampler.balance_loss_coeff * self.totals["balance"] / windows
        weights = sampler.balance_weights or [1.0] * len(sampler.scales)
        shares, probs = self.scale_shares, self.mean_probs
        terms = (w * shares[name] * probs.get(name, 0.0) for w, name in zip(weights, sampler.scales, strict=True))
        return sampler.balance_loss_coeff * sum(terms)

    @property
    def scale_shares(self) -> dict[str, float]:
        """Share of the windows that chose each scale (f of Eq. 4)."""
        windows = max(sum(self.scale_counts.values()), 1)
        return {name: count / windows for name, count in self.scale_counts.items()}

    @property
    def mean_probs(self) -> dict[str, float]:
        """Mean probability of each scale over the windows (P of Eq. 5)."""
        return {name: total / max(self.totals["windows"], 1) for name, total in self.scale_probs.items()}

    @property
    def choice_by_picture(self) -> float:
        """Mutual information of scale and picture in bits: how far the picture alone decides the scale of a window."""
        return self._choice_entropy - self.choice_by_region

    @property
    def choice_by_region(self) -> float:
        """Mutual information of scale and region, given the picture, in bits: the mean entropy within a picture."""
        return self.totals["entropy_within_pictures"] / max(self.totals["windows"], 1) / math.log(2)

    @property
    def choice_within_pictures(self) -> float:
        """Share of the choice's entropy that lies within pictures; 0 where every window takes the same scale."""
        return self.choice_by_region / self._choice_entropy if self._choice_entropy > 0 else 0.0

    @property
    def _choice_entropy(self) -> float:
        """Entropy in bits of the scale that a window of the step takes."""
        return -sum(share * math.log2(share) for share in self.scale_shares.values() if share > 0)

    @property
    def kept_by_vision(self) -> float:
        """m / m0: visual tokens that enter the LLM, of those LLaVA-NeXT would use."""
        return self.totals["visual"] / max(self.totals["baseline_visual"], 1)

    @property
    def kept_by_text(self) -> float:
        """k / m: visual tokens that survive the text-guided sampler, of those that entered the LLM."""
        return 1 - self.totals["dropped"] / max(self.totals["visual"], 1)

    @property
    def effective_tokens(self) -> float:
        """(m - n + i n / L) / m0: visual tokens counted by the layers that see them."""
        seen = self.totals["visual"] - self.totals["dropped"] + self.totals["dropped_passes"]
        return seen / max(self.totals["baseline_visual"], 1)

    @property
    def tokens_per_second(self) -> float:
        """Tokens that enter the LLM, text and visual, per second."""
        return self.totals["row_tokens"] / self.seconds

    @property
    def packing_fill(self) -> float:
        """Share of the rows' token budget that was used."""
        rows = self.totals["microbatches"] - self.totals["fillers"]
        return self.totals["row_tokens"] / max(rows * self.row_budget, 1)

    @property
    def data_wait_share(self) -> float:
        """Share of the step that the ranks which read data spent waiting for it, on average."""
        return self.totals["data_wait"] / max(self.totals["readers"], 1) / self.seconds

    def mfu(self, world_size: int, peak_tflops: float | None) -> float | None:
        """Model FLOPs used, of what the devices could do; None where their peak is not known."""
        if peak_tflops is None:
            return None
        return self.totals["flops"] / (self.seconds * world_size * peak_tflops * 1e12)


@dataclass
class StepRecorder:
    """Collects the figures of one rank during a step."""

    model: ModelConfig
    row_budget: int
    """Tokens that a packed row should hold at most."""
    sources: list[str] = field(default_factory=list)
    """Names of the data sets; the same on all ranks."""
    freeze: Collection[str] = ()
    """Modules that are not trained, see ``optimizer.freeze``."""
    totals: dict[str, float | Tensor] = field(default_factory=lambda: dict.fromkeys(FIELDS, 0.0))
    scale_counts: Tensor | None = None
    scale_probs: Tensor | None = None

    def __post_init__(self) -> None:
        self.source_counts = torch.zeros(len(self.sources), dtype=torch.float64)
        self.contributes = parallel_state.get_tensor_model_parallel_rank() == 0

    def add(self, inputs: RowInputs | None, result: StageOutput) -> None:
        """Count one microbatch of one stage; nothing here waits for the device."""
        layers = self.model.language.num_layers
        tower, decoder = training_passes(self.freeze)
        flops = decoder * sum(count * decoder_layer_flops(self.model, lens) for count, lens in result.decoder.segments)
        if inputs is not None and result.visual is not None:
            row, visual = inputs.row, result.visual
            self._add("samples", 0 if row.is_filler else row.num_samples)
            self._add("microbatches", 1)
            self._add("fillers", row.is_filler)
            self._add("labels", inputs.loss_tokens)
            self._add("windows", inputs.plan.num_windows)
            self._add("balance", visual.balance.detach() * inputs.plan.num_windows)
            self._add("visual", len(visual.tokens))
            tokens = len(row.tokens) - inputs.plan.num_images + len(visual.tokens)
            self._add("row_tokens", tokens)
            self._add("over_budget", tokens > self.row_budget)
            flops += tower * vision_flops(self.model, len(row.tiles))
            if len(visual.scale_counts) > 0:
                counts = visual.scale_counts
                self.scale_counts = counts if self.scale_counts is None else self.scale_counts + counts
            if visual.choice is not None:
                probs = visual.choice.probs
                self.scale_probs = probs if self.scale_probs is None else self.scale_probs + probs
                self._add("entropy_within_pictures", visual.choice.entropy_within_pictures)
        for layer, dropped in result.decoder.dropped:
            self._add("dropped", dropped)
            self._add("dropped_passes", dropped * (layer / layers))
        self._add("flops", flops)

    def add_loss(self, loss: Tensor, tokens: Tensor, head_tokens: int) -> None:
        """Count the loss of one microbatch, on the last stage."""
        self._add("loss", loss.detach())
        self._add("loss_tokens", tokens)
        _, decoder = training_passes(self.freeze)
        self._add("flops", decoder * head_flops(self.model, head_tokens))

    def add_step(self, baseline_visual_tokens: int, report: StepReport, wait_seconds: float | None) -> None:
        """Count what is known of the whole step; ``wait_seconds`` is None on ranks that do not read data."""
        self._add("baseline_visual", baseline_visual_tokens)
        self._add("skipped", len(report.skipped))
        if wait_seconds is not None:
            self._add("data_wait", wait_seconds)
            self._add("readers", 1)
        for source, count in report.samples_by_source.items():
            self.source_counts[self.sources.index(source)] += count

    def _add(self, name: str, value: float | Tensor) -> None:
        self.totals[name] = self.totals[name] + value

    def over_all_ranks(self, device: torch.device) -> StepMetrics:
        """The sums over all ranks (a collective over the world); what only the step knows is left at its default."""
        sampler = self.model.vision_sampler
        scales = sampler.scales if sampler.enabled else []
        none = torch.zeros(len(scales), device=device)
        counts = self.scale_counts if self.scale_counts is not None else none
        probs = self.scale_probs if self.scale_probs is not None else none
        values = [torch.as_tensor(v, device=device).double().reshape(1) for v in self.totals.values()]
        of_scales = [counts.to(device).double(), probs.to(device).double()]
        vector = torch.cat([*values, *of_scales, self.source_counts.to(device)])
        vector *= float(self.contributes)
        torch.distributed.all_reduce(vector)
        numbers = vector.tolist()
        totals = dict(zip(FIELDS, numbers, strict=False))
        rest = iter(numbers[len(FIELDS) :])
        scale_counts = {name: round(next(rest)) for name in scales}
        scale_probs = {name: next(rest) for name in scales}
        samples_by_source = {name: round(next(rest)) for name in self.sources}
        if totals["loss_tokens"] != totals["labels"]:
            raise RuntimeError(
                f"{totals['labels']:.0f} labelled tokens went in and {totals['loss_tokens']:.0f} came out: "
                "dropping must not touch a token with a label"
            )
        return StepMetrics(
            totals=totals,
            scale_counts=scale_counts,
            scale_probs=scale_probs if sampler.method == "learned" else {},
            samples_by_source=samples_by_source,
            row_budget=self.row_budget,
            vision_sampler=sampler,
        )


def loss_tokens(result: StageOutput) -> Tensor:
    """Labelled tokens of a microbatch after all drops, int32."""
    layout = result.layout
    return ((layout.label != IGNORE_INDEX) & (layout.kind != PAD)).sum().to(torch.int32)
