"""Decoding and resizing with NVIDIA DALI, one or more batches ahead of their use."""

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_pipeline.anyres import TilePlan, assemble_tiles
from data_pipeline.config import ImageGeometry
from data_pipeline.decoding.cpu import cpu_tiles, plan_image
from data_pipeline.decoding.probe import ImageHeader, probe
from data_pipeline.errors import SampleError

logger = logging.getLogger(__name__)

DALI_MODES = {"JPEG": ("RGB", "L"), "PNG": ("RGB", "L", "RGBA"), "WEBP": ("RGB", "RGBA")}
"""What DALI gets: format to Pillow's modes. Of what Pillow reads, DALI refuses GIF and scales 16-bit colour another
way; the rest is rare, and decoders on the GPU may differ where those on the CPU agree (CMYK, TIFF)."""

MAX_RUN_PIXELS = 100_000_000
"""Decoded pixels that DALI holds for a run, at 3 bytes each."""

MAX_RUNNING = 2
"""Batches that DALI works on or holds the results of: one to be fetched, one in the making."""


class DaliTiler:
    """Encoded images in, uint8 tiles out, in the order in which they were submitted.

    ``submit`` starts a batch and returns; ``fetch`` gives the oldest batch that was submitted. Images that DALI does
    not decode as Pillow does, and those of a batch that DALI fails on, take the CPU path, in threads. To be used from
    one thread.

    Args:
        geometry: tile side P, canvases and pixel limit.
        max_images: images that DALI decodes at a time; a larger batch is decoded in parts, and so is one of more than
            ``MAX_RUN_PIXELS``.
        device: ``gpu`` decodes and resizes on a CUDA device; ``cpu`` runs the same graph without one.
        num_threads: threads of DALI, and of the CPU path.
        device_id: number of the CUDA device; None for ``cpu``.

    Raises:
        ValueError: DALI is not installed, or the device does not exist.
    """

    def __init__(
        self,
        geometry: ImageGeometry,
        max_images: int,
        *,
        device: str = "gpu",
        num_threads: int = 4,
        device_id: int | None = None,
    ):
        assert max_images > 0 and num_threads > 0 and device in ("gpu", "cpu")
        if device == "gpu" and not torch.cuda.is_available():
            raise ValueError("DALI on a GPU: torch finds no CUDA device; use device 'cpu'")
        if (device == "gpu") != (device_id is not None):
            raise ValueError(f"DALI: {device=} with {device_id=}; a GPU needs a number, the CPU has none")
        try:
            from data_pipeline.decoding.dali_graph import DaliGraph
        except ImportError as error:
            raise ValueError(
                f"DALI is not installed ({error}); install the extra 'gpu': pip install '.[gpu]'"
            ) from error
        self._build = lambda: DaliGraph(geometry.tile_size, max_images, num_threads, device_id)
        self.geometry, self.max_images = geometry, max_images
        self.device = torch.device("cpu" if device_id is None else f"cuda:{device_id}")
        self._graph = self._build()
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        self._batches: deque[_Batch] = deque()
        self._waiting: deque[_Run] = deque()
        self._running: deque[_Run] = deque()

    def submit(self, images: Sequence[tuple[str, bytes]]) -> None:
        """Start a batch of any number of (name, bytes of the file); their headers are read at once."""
        batch = _Batch()
        for_dali: list[_Image] = []
        for place, (name, data) in enumerate(images):
            try:
                header = probe(data, name, self.geometry.max_image_pixels)
                plan = plan_image(header.height, header.width, name, self.geometry)
            except SampleError as error:
                batch.done[place] = error
                continue
            image = _Image(place, name, data, header.height * header.width, plan)
            if dali_takes(header, data):
                for_dali.append(image)
            else:
                self._start_on_cpu(image, batch)
        batch.runs = _runs(for_dali, self.max_images)
        self._batches.append(batch)
        self._waiting.extend(batch.runs)
        self._start_waiting()

    def fetch(self) -> list[Tensor | SampleError]:
        """The oldest batch: for each image uint8 [t, 3, P, P] on the device, or why it cannot be decoded.

        On a GPU the tiles are ready on torch's current stream.
        """
        assert self._batches, "every fetch needs a submit before it"
        batch = self._batches.popleft()
        for run in batch.runs:
            self._finish(run, batch)
        for place, future in batch.on_cpu.items():
            try:
                batch.done[place] = future.result().to(self.device, non_blocking=True)
            except SampleError as error:
                batch.done[place] = error
        return [batch.done[place] for place in range(len(batch.done))]

    def close(self) -> None:
        """Drop what was submitted and not fetched, and give back threads and memory."""
        for queue in (self._batches, self._waiting, self._running):
            queue.clear()
        self._threads.shutdown(cancel_futures=True)
        del self._graph

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < MAX_RUNNING:
            self._running.append(self._waiting.popleft())
            self._start(self._running[-1])

    def _start(self, run: "_Run") -> None:
        self._graph.start([image.data for image in run], [image.plan for image in run])

    def _finish(self, run: "_Run", batch: "_Batch") -> None:
        """Collect the oldest run of DALI; when it failed, hand its images to the CPU path one by one."""
        oldest = self._running.popleft()
        assert oldest is run, "runs are fetched in the order in which they were started"
        try:
            resized = self._graph.finish()
        except RuntimeError as error:
            names = ", ".join(image.name for image in run)
            logger.warning("DALI failed on a batch, which is decoded on the CPU (%s): %s", names, error)
            self._graph = self._build()  # the old graph is invalid after an error, by its own message
            for later in self._running:
                self._start(later)
            for image in run:
                self._start_on_cpu(image, batch)
        else:
            for image, (overview, local) in zip(run, resized, strict=True):
                batch.done[image.place] = assemble_tiles(overview, local, image.plan, self.geometry)
            self._graph.release()
        self._start_waiting()

    def _start_on_cpu(self, image: "_Image", batch: "_Batch") -> None:
        batch.on_cpu[image.place] = self._threads.submit(self._cpu_tiles, image)

    def _cpu_tiles(self, image: "_Image") -> Tensor:
        tiles = cpu_tiles(image.data, image.name, self.geometry)
        return tiles.pin_memory() if self.device.type == "cuda" else tiles


@dataclass(frozen=True)
class _Image:
    place: int
    """In its batch."""
    name: str
    data: bytes
    pixels: int
    plan: TilePlan


_Run = list[_Image]
"""Images that DALI decodes at a time."""


def _runs(images: list[_Image], max_images: int) -> list[_Run]:
    """The images in runs of at most ``max_images`` and ``MAX_RUN_PIXELS``; a larger image is a run of its own."""
    runs: list[_Run] = []
    room = 0
    for image in images:
        if not runs or len(runs[-1]) == max_images or image.pixels > room:
            runs.append([])
            room = MAX_RUN_PIXELS
        runs[-1].append(image)
        room -= image.pixels
    return runs


@dataclass
class _Batch:
    done: dict[int, Tensor | SampleError] = field(default_factory=dict)
    """By place; complete once the rest is collected."""
    on_cpu: dict[int, "Future[Tensor]"] = field(default_factory=dict)
    runs: list[_Run] = field(default_factory=list)


def dali_takes(header: ImageHeader, data: bytes) -> bool:
    """Whether DALI decodes this file as Pillow does."""
    if header.mode not in DALI_MODES.get(header.format, ()):
        return False
    if header.format == "JPEG":
        return data.rfind(b"\xff\xd9", -64) >= 0  # without its end mark it is cut; not every decoder would say so
    return header.format != "PNG" or data[24] == 8  # bits per channel
