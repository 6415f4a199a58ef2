"""A sample with all that is shown of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_pipeline.config import ImageGeometry
from data_pipeline.conversations.conversation import Turn
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.shard_reader import ShardReader
from data_pipeline.inspection.canvas import CanvasView, view_canvas
from data_pipeline.inspection.counts import SampleLengths


@dataclass(frozen=True, kw_only=True)
class SampleView:
    """One sample of a data set."""

    index: int
    """Place in the manifest."""
    id: str
    source: str
    shard: str
    turns: list[Turn]
    images: list[CanvasView]
    text_tokens: int
    loss_tokens: int
    visual_tokens: int
    kept_tokens: int
    """Visual tokens after the expected compression."""


def view_samples(
    reader: ShardReader, indices: Sequence[int], lengths: SampleLengths, geometry: ImageGeometry, side: int
) -> Iterator[SampleView]:
    """Read, decode and draw samples, one at a time.

    Args:
        reader: of the data set.
        indices: places in its manifest.
        lengths: of all its samples.
        geometry: how images are tiled.
        side: longer side of an image's drawing in pixels.

    Raises:
        SampleError: naming shard and sample: it cannot be read or decoded.
    """
    manifest: Manifest = reader.manifest
    for index in indices:
        stored = reader.read(index)
        images = [
            view_canvas(data, f"{number} of {manifest.describe(index)}", geometry, side)
            for number, data in enumerate(stored.images, start=1)
        ]
        yield SampleView(
            index=index,
            id=manifest.id(index),
            source=manifest.source_names[manifest.source[index]],
            shard=manifest.shard_names[manifest.shard[index]],
            turns=stored.turns,
            images=images,
            text_tokens=int(lengths.text[index]),
            loss_tokens=int(manifest.loss_tokens[index]),
            visual_tokens=int(lengths.visual[index]),
            kept_tokens=int(lengths.kept[index]),
        )
