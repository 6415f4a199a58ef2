"""The sides that are compared: each makes normalised tiles, float32 [t, 3, P, P], of the same encoded images."""

import importlib.util
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from data_pipeline.anyres import CLIP_MEAN, CLIP_STD, hf_grid_pinpoints, normalise, plan_tiles
from data_pipeline.benchmark.pictures import Shard
from data_pipeline.config import ImageGeometry
from data_pipeline.decoding.cpu import cpu_tiles
from data_pipeline.decoding.dali import DaliTiler
from data_pipeline.errors import SampleError

SLOW = "transformers (PIL)"
FAST = "transformers (torch)"
PLAIN = "plain PIL"
CPU = "this project, CPU"
DALI_CPU = "DALI on the CPU"
DALI_GPU = "DALI on the GPU"
SIDES = (SLOW, FAST, PLAIN, CPU, DALI_CPU, DALI_GPU)

DALI_BATCH = 8
"""Images that DALI works on at a time."""

Side = Callable[[], Iterator[Tensor]]
"""Reads all images of a shard and makes their tiles, image by image; none is kept."""


def unavailable() -> dict[str, str]:
    """The sides that cannot run here, and what they need."""
    torchvision = importlib.util.find_spec("torchvision") is not None
    # find_spec imports the parent package of a dotted name, which is not there either.
    dali = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    missing = {}
    if not torchvision:
        missing[FAST] = "torchvision"
    if not dali:
        missing[DALI_CPU] = missing[DALI_GPU] = "DALI"
    elif not torch.cuda.is_available():
        missing[DALI_GPU] = "a CUDA device"
    return missing


@contextmanager
def open_sides(shard: Shard, geometry: ImageGeometry, threads: int) -> Iterator[dict[str, Side]]:
    """The sides that can run here, by name, until the end of the block."""
    with ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(threads))

        def shared_out(tiler: Callable[[bytes], Tensor]) -> Side:
            return lambda: executor.map(lambda name: tiler(shard.read(name)), shard.names)

        def dali(device: str) -> Side:
            side = DaliSide(shard, geometry, device, threads)
            stack.callback(side.tiler.close)
            return side

        makers: dict[str, Callable[[], Side]] = {
            SLOW: lambda: shared_out(_processor(LlavaNextImageProcessorPil, geometry)),
            FAST: lambda: shared_out(_processor(_torch_processor(), geometry)),
            PLAIN: lambda: shared_out(lambda data: plain_pil(data, geometry)),
            CPU: lambda: shared_out(lambda data: normalise(cpu_tiles(data, "image", geometry), torch.float32)),
            DALI_CPU: lambda: dali("cpu"),
            DALI_GPU: lambda: dali("gpu"),
        }
        missing = unavailable()
        yield {name: make() for name, make in makers.items() if name not in missing}


def _torch_processor() -> type:
    # Without torchvision this name stands for the PIL processor, so it is looked up where torchvision is known to be.
    from transformers import LlavaNextImageProcessor

    return LlavaNextImageProcessor


def _processor(kind: type, geometry: ImageGeometry) -> Callable[[bytes], Tensor]:
    side = {"height": geometry.tile_size, "width": geometry.tile_size}  # its own default is another size
    processor = kind(size=side, crop_size=side, image_grid_pinpoints=hf_grid_pinpoints(geometry))
    return lambda data: processor(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"][0]


def plain_pil(data: bytes, geometry: ImageGeometry) -> Tensor:
    """What one writes down first: Pillow decodes, resizes, pastes and crops; numpy normalises."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    plan, tile = plan_tiles(image.height, image.width, geometry), geometry.tile_size
    canvas = Image.new("RGB", (plan.canvas_width, plan.canvas_height))
    resized = image.resize((plan.resized_width, plan.resized_height), Image.Resampling.BICUBIC)
    canvas.paste(resized, (plan.pad_left, plan.pad_top))
    tiles = [image.resize((tile, tile), Image.Resampling.BICUBIC)]
    for top in range(0, plan.canvas_height, tile):
        for left in range(0, plan.canvas_width, tile):
            tiles.append(canvas.crop((left, top, left + tile, top + tile)))
    pixels = np.stack([np.asarray(picture) for picture in tiles]).astype(np.float32) / 255
    pixels = (pixels - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


class DaliSide:
    """Submits a batch ahead of the one it fetches; the tiles stay on DALI's device."""

    def __init__(self, shard: Shard, geometry: ImageGeometry, device: str, num_threads: int):
        self.shard = shard
        device_id = torch.cuda.current_device() if device == "gpu" else None
        self.tiler = DaliTiler(geometry, DALI_BATCH, device=device, num_threads=num_threads, device_id=device_id)

    def __call__(self) -> Iterator[Tensor]:
        """The side."""
        names = self.shard.names
        batches = deque(names[i : i + DALI_BATCH] for i in range(0, len(names), DALI_BATCH))
        self._submit(batches.popleft())
        while batches:
            self._submit(batches.popleft())
            yield from self._fetch()
        yield from self._fetch()

    def _submit(self, names: Sequence[str]) -> None:
        self.tiler.submit([(name, self.shard.read(name)) for name in names])

    def _fetch(self) -> Iterator[Tensor]:
        for result in self.tiler.fetch():
            assert not isinstance(result, SampleError), "the benchmark's own images are good"
            yield normalise(result, torch.float32)
