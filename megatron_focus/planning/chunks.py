"""Model chunks: which decoder layers lie where, and Megatron's layout string for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from megatron_focus.config.pipeline_layout import expanded_layout
from megatron_focus.config.schema import ModelConfig, ParallelConfig


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One model chunk: layers ``start`` to ``end`` (not included); the first also has the images, the last the head."""

    start: int
    end: int
    first: bool
    last: bool

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return self.end - self.start


def chunks_of(sizes: Sequence[int]) -> list[Chunk]:
    """Chunks with these numbers of layers, in the order of the layers."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    starts = [0, *ends[:-1]]
    last = len(sizes) - 1
    return [
        Chunk(start=s, end=e, first=i == 0, last=i == last) for i, (s, e) in enumerate(zip(starts, ends, strict=True))
    ]


def configured_sizes(model: ModelConfig, parallel: ParallelConfig) -> list[int]:
    """Layers of each chunk as a validated configuration says: its layout string, or an even split."""
    count = parallel.pipeline_model_parallel_size * (parallel.virtual_pipeline_model_parallel_size or 1)
    layout = parallel.pipeline_model_parallel_layout
    if layout is None:
        return [model.language.num_layers // count] * count
    return [part.count("t") for part in expanded_layout(layout).split("|")]


def layout_string(sizes: Sequence[int]) -> str:
    """Megatron's ``pipeline_model_parallel_layout``, e.g. ``Et*5|t*9|t*9|t*9L``."""
    parts = ["t" if size == 1 else f"t*{size}" if size else "" for size in sizes]
    return "E" + "|".join(parts) + "L"


def even_sizes(num_layers: int, count: int) -> list[int]:
    """Layers as evenly as they go, the larger chunks in front."""
    ends = [-(-num_layers * i // count) for i in range(count + 1)]
    return [b - a for a, b in pairwise(ends)]


def of_stage(chunks: Sequence[Chunk], stage: int, stages: int) -> list[Chunk]:
    """The chunks of pipeline stage ``stage``: chunk c of stage s is number c * stages + s."""
    return list(chunks[stage::stages])
