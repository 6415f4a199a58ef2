"""The graph that DALI runs: decode, and resize twice. The only module that imports DALI, which is an optional extra."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from torch import Tensor

from data_pipeline.anyres import TilePlan


class DaliGraph:
    """Batches of files in, resized images out, in order; batches run in the background as soon as they are started.

    With a queue depth of 1 DALI's dynamic executor runs as many batches ahead as were scheduled, and schedules nothing
    by itself; a larger depth would want its first batches all at once.
    """

    def __init__(self, tile_size: int, max_images: int, num_threads: int, device_id: int | None):
        """``device_id`` None decodes and resizes on the CPU, otherwise on that CUDA device."""
        self.device_id = device_id
        self.pipeline: Pipeline = _graph(
            tile_size,
            "cpu" if device_id is None else "mixed",
            batch_size=max_images,
            num_threads=num_threads,
            device_id=device_id,
            prefetch_queue_depth=1,
        )
        self.pipeline.build()

    def start(self, files: Sequence[bytes], plans: Sequence[TilePlan]) -> None:
        """Queue a batch of at most ``max_images``."""
        sizes = [np.array([plan.resized_height, plan.resized_width], np.float32) for plan in plans]
        self.pipeline.feed_input("files", [np.frombuffer(data, np.uint8) for data in files])
        self.pipeline.feed_input("sizes", sizes)
        self.pipeline.schedule_run()

    def finish(self) -> list[tuple[Tensor, Tensor]]:
        """Wait for the oldest batch: for each image uint8 [3, P, P] and [3, resized_height, resized_width].

        On a GPU the tensors are ready on torch's current stream, and the host does not wait for them. They are valid
        until ``release``, which has to follow.

        Raises:
            RuntimeError: an image of the batch cannot be decoded. DALI calls the graph invalid then.
        """
        stream = None if self.device_id is None else torch.cuda.current_stream(self.device_id)
        overviews, resized = self.pipeline.share_outputs(stream)
        return [(_chw(overviews[i]), _chw(resized[i])) for i in range(len(resized))]

    def release(self) -> None:
        """Give the memory of what ``finish`` returned back to DALI, once everything queued on it is done."""
        if self.device_id is not None:
            torch.cuda.current_stream(self.device_id).synchronize()
        self.pipeline.release_outputs()


@pipeline_def
def _graph(tile_size: int, device: str):
    files = fn.external_source(name="files", dtype=types.DALIDataType.UINT8, ndim=1)
    sizes = fn.external_source(name="sizes", dtype=types.DALIDataType.FLOAT, ndim=1)
    # LLaVA ignores the EXIF orientation; libjpeg and Pillow upsample chroma smoothly.
    # No share for a GPU's JPEG unit, which makes other pixels than CUDA does: what it gets depends on the batch, and an
    # image has to come out the same in every batch.
    load = None if device == "cpu" else 0.0
    images = fn.decoders.image(
        files, device=device, adjust_orientation=False, jpeg_fancy_upsampling=True, hw_decoder_load=load
    )
    resize = partial(fn.resize, images, interp_type=types.DALIInterpType.INTERP_CUBIC, antialias=True)
    return resize(size=[tile_size, tile_size]), resize(size=sizes)


def _chw(image) -> Tensor:
    return torch.from_dlpack(image).permute(2, 0, 1)
