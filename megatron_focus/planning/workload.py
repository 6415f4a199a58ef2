"""What a step computes: the samples of a row, how long they are at each layer, and how many rows a step has.

Shapes: L decoder layers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from data_pipeline.anyres import plan_tiles, visual_token_count
from data_pipeline.config import DataConfig, ImageGeometry
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.loading.ordering import OrderSettings, SampleOrder
from data_pipeline.loading.packing import pack
from megatron_focus.config.schema import ModelConfig, RunConfig

_STEPS = 16
"""Global batches that are drawn from a manifest to find the mean row."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Lengths of one sample, in tokens."""

    text: int
    visual: int
    """Of LLaVA-NeXT, before any sampling."""
    tiles: int
    labels: int
    instruction: int
    """User tokens behind the image, which ask in the text-guided sampler."""


@dataclass(frozen=True, kw_only=True)
class LayerLoad:
    """One row in one decoder layer."""

    tokens: float
    squares: float
    """Sum over samples of their squared length, for the attention."""


def together(layers: Iterable[LayerLoad]) -> LayerLoad:
    """Several layers as one: every cost of a decoder layer is linear in its tokens and squares."""
    tokens = squares = 0.0
    for load in layers:
        tokens += load.tokens
        squares += load.squares
    return LayerLoad(tokens=tokens, squares=squares)


@dataclass(frozen=True, kw_only=True)
class RowLoad:
    """One row (microbatch); figures of a mean row are not whole numbers."""

    samples: float
    text: float
    visual: float
    """Visual tokens that enter the language model."""
    tiles: float
    labels: float
    layers: tuple[LayerLoad, ...]
    """[L]."""
    selection_tokens: float = 0.0
    """Instruction and visual tokens of samples that drop somewhere: their queries and keys are computed once more."""
    selection_pairs: float = 0.0
    """Sum over those samples of instruction tokens times visual tokens."""

    @property
    def tokens(self) -> float:
        """Tokens that enter the language model."""
        return self.text + self.visual


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The rows of a step."""

    rows: float
    """Rows of a step's global batch, over all data-parallel ranks; the mean over steps."""
    mean: RowLoad
    worst: RowLoad
    """What the memory must hold: a row as long as packing allows, nothing compressed or dropped. Each figure by
    itself is a bound over all rows that the given samples can make, so not all of them need occur in one row."""
    source: str
    """Where the lengths are from, for people."""


def assumed_sample(height: int, width: int, text: int, labels: int, instruction: int, image: ImageGeometry) -> Sample:
    """A sample with one image of ``height`` x ``width`` pixels."""
    return Sample(
        text=text,
        visual=visual_token_count(height, width, image),
        tiles=_tiles(height, width, image),
        labels=labels,
        instruction=instruction,
    )


def manifest_samples(manifest: Manifest, data: DataConfig, image: ImageGeometry, count: int) -> list[Sample]:
    """The first ``count`` samples of the training; all text that is not learnt is taken to be the user's.

    Raises:
        ValueError: ``data.source_weights`` does not fit the data set.
    """
    settings = OrderSettings(
        seed=data.seed, weights=dict(data.source_weights), shuffle=data.shuffle, window=data.shuffle_window
    )
    order = SampleOrder(manifest.source, manifest.source_names, manifest.shard, settings)
    text, visual = manifest.text_only_tokens(), manifest.visual_tokens(image)
    samples = []
    for index in order.take(0, count).tolist():
        images = range(manifest.first_image[index], manifest.first_image[index + 1])
        labels = int(manifest.loss_tokens[index])
        samples.append(
            Sample(
                text=int(text[index]),
                visual=int(visual[index]),
                tiles=sum(_tiles(int(manifest.heights[i]), int(manifest.widths[i]), image) for i in images),
                labels=labels,
                instruction=max(int(text[index]) - labels, 0),
            )
        )
    return samples


def _tiles(height: int, width: int, image: ImageGeometry) -> int:
    plan = plan_tiles(height, width, image)
    return 1 + plan.rows * plan.cols


def workload(
    config: RunConfig, samples: Sequence[Sample], kept_vision: float, kept_text: float, source: str
) -> Workload:
    """Pack global batches of ``samples`` as the loader does, but even in tokens, and average their rows.

    Args:
        config: its packing, samplers and batch size count.
        samples: cycled through if fewer than a global batch.
        kept_vision: share of the visual tokens that the vision-guided sampler keeps.
        kept_text: share of those that the text-guided sampler keeps.
        source: for people.

    Raises:
        ValueError: a sample does not fit into ``data.max_sequence_length``.
    """
    budget, batch = config.data.max_sequence_length, config.training.global_batch_size
    worst_budget = round(budget * config.data.worst_case_factor)
    sampler = config.model.vision_sampler
    kept = (sampler.heuristic_keep or kept_vision) if sampler.enabled else 1.0
    packed = kept if config.data.packing_estimate == "running" else 1.0
    fitting = [s for s in samples if s.text + s.visual <= budget]
    if not fitting or (len(fitting) < len(samples) and config.data.on_bad_sample == "error"):
        longest = max(s.text + s.visual for s in samples)
        raise ValueError(f"a sample has {longest} tokens, more than data.max_sequence_length={budget}: raise that")
    steps = max(1, min(_STEPS, len(fitting) // batch))
    loads, counts = [], []
    known: dict[tuple[Sample, ...], RowLoad] = {}
    for step in range(steps):
        of_step = [fitting[(step * batch + i) % len(fitting)] for i in range(batch)]
        expected = [s.text + int(np.ceil(s.visual * packed)) for s in of_step]
        rows = pack(
            cost=expected,
            lengths=expected,
            budget=budget,
            worst=[s.text + s.visual for s in of_step],
            worst_budget=worst_budget,
            multiple=config.data.rows_multiple_of,
        )
        counts.append(len(rows))
        for row in rows:
            of_row = tuple(sorted((of_step[i] for i in row), key=astuple))
            if of_row not in known:
                known[of_row] = row_load(config.model, of_row, kept, kept_text)
            loads.append(known[of_row])
    return Workload(
        rows=float(np.mean(counts)),
        mean=_mean(loads),
        worst=_worst_row(config, fitting, worst_budget if packed < 1 else budget),
        source=source,
    )


def row_load(model: ModelConfig, samples: Iterable[Sample], kept_vision: float, kept_text: float) -> RowLoad:
    """The load of a row of ``samples``; a random drop layer gives each layer its expectation."""
    samples = list(samples)
    dropping = [_dropped_before(model, layer) for layer in range(model.language.num_layers)]
    entering = [(s, s.visual * kept_vision) for s in samples]
    layers = []
    for share in dropping:
        tokens = squares = 0.0
        for sample, visual in entering:
            drops = share if sample.instruction > 0 else 0.0
            longer, shorter = sample.text + visual, sample.text + visual * kept_text
            tokens += (1 - drops) * longer + drops * shorter
            squares += (1 - drops) * longer**2 + drops * shorter**2
        layers.append(LayerLoad(tokens=tokens, squares=squares))
    selecting = [(s, v) for s, v in entering if dropping[-1] > 0 and s.instruction > 0 and v > 0]
    return RowLoad(
        samples=len(samples),
        text=sum(s.text for s in samples),
        visual=sum(visual for _, visual in entering),
        tiles=sum(s.tiles for s in samples),
        labels=sum(s.labels for s in samples),
        layers=tuple(layers),
        selection_tokens=sum(s.instruction + visual for s, visual in selecting),
        selection_pairs=sum(s.instruction * visual for s, visual in selecting),
    )


def _dropped_before(model: ModelConfig, layer: int) -> float:
    """Share of the samples that have dropped their tokens when they enter ``layer``, in training."""
    sampler = model.text_sampler
    if sampler.mode in ("off", "direct"):
        return 0.0
    if sampler.mode == "train":
        return float(layer >= sampler.layer)
    first, last = sampler.layer_range
    return min(max((layer - first + 1) / (last - first + 1), 0.0), 1.0)


def _mean(loads: Sequence[RowLoad]) -> RowLoad:
    def mean(name: str) -> float:
        return float(np.mean([getattr(load, name) for load in loads]))

    layers = zip(*(load.layers for load in loads), strict=True)
    return RowLoad(
        samples=mean("samples"),
        text=mean("text"),
        visual=mean("visual"),
        tiles=mean("tiles"),
        labels=mean("labels"),
        layers=tuple(
            LayerLoad(
                tokens=float(np.mean([load.tokens for load in layer])),
                squares=float(np.mean([load.squares for load in layer])),
            )
            for layer in layers
        ),
        selection_tokens=mean("selection_tokens"),
        selection_pairs=mean("selection_pairs"),
    )


def _worst_row(config: RunConfig, samples: Sequence[Sample], length: int) -> RowLoad:
    """Bounds, one by one, of rows of ``length`` uncompressed tokens: a row may hold only samples with most tiles."""
    known = set(samples)

    def most(figure: Callable[[Sample], float]) -> float:
        return length * max(figure(s) / (s.text + s.visual) for s in known)

    selecting = float(_dropped_before(config.model, config.model.language.num_layers - 1) > 0)
    layer = LayerLoad(tokens=length, squares=most(lambda s: (s.text + s.visual) ** 2))
    return RowLoad(
        samples=max(most(lambda s: 1), 1.0),
        text=most(lambda s: s.text),
        visual=most(lambda s: s.visual),
        tiles=most(lambda s: s.tiles),
        labels=most(lambda s: s.labels),
        layers=(layer,) * config.model.language.num_layers,
        selection_tokens=selecting * most(lambda s: s.instruction + s.visual if s.instruction * s.visual else 0),
        selection_pairs=selecting * most(lambda s: s.instruction * s.visual),
    )
