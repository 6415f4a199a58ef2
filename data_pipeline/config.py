"""Configuration of the image geometry and of the data path.

Both are plain dataclasses that ``megatron_focus.config`` merges from YAML; ``data_pipeline`` itself knows nothing of
Megatron.
"""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class ImageGeometry:
    """How an image becomes tiles and cells (LLaVA-NeXT's anyres scheme)."""

    tile_size: int = 336
    """Side of a square tile in pixels; also the input size of the vision tower."""

    patch_size: int = 14
    """Side of a vision-tower patch in pixels. A tile has ``(tile_size / patch_size)`` squared cells."""

    grid_pinpoints: list[list[int]] = field(
        default_factory=lambda: [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    )
    """Canvas resolutions to choose from, as (width, height) in pixels, in the order in which ties are decided."""

    max_image_pixels: int = 100_000_000
    """An image with more pixels is refused from its header, before anything is decoded."""

    @property
    def cells_per_side(self) -> int:
        """Cells (visual tokens before any sampling) along one side of a tile."""
        return self.tile_size // self.patch_size


@dataclass(kw_only=True)
class DataConfig:
    """Where the samples come from, and how they are ordered, packed, read and decoded."""

    path: str | None = None
    """Path or URL (http, https, s3 ...) of a data set that ``tools/prepare_data.py`` wrote: shards and manifest."""

    cache_dir: str | None = None
    """Local folder in which shards from a URL are kept, shared by the processes of a machine; without it every sample
    is fetched when it is needed."""

    cache_gib: float | None = None
    """Size that the cache is kept below, in GiB; no limit if not set."""

    tokenizer: str | None = None
    """Folder of a Hugging Face tokenizer with an image token and a pad token of their own."""

    chat_template: str = "llama3"
    """Form of the conversations: ``llama3``, ``vicuna``, ``llama2``, ``chatml``, ``mistral``, ``tokenizer`` (its own),
    or ``plain`` for captions (stage 1)."""

    seed: int = 1234
    """Seed of the sample order."""

    source_weights: dict[str, float] = field(default_factory=dict)
    """How often an epoch shows each sample of a source, by the source's name: 0.5 shows half of them, another half in
    the next epoch. 1 for sources not named."""

    shuffle: str = "samples"
    """``samples`` shuffles completely. ``shards``, for shards behind a URL, shuffles whole shards and then mixes those
    that are neighbours, so that each is needed for a while and then no more."""

    shuffle_window: int = 10_000
    """Places in the order over which samples of neighbouring shards and sources are mixed."""

    max_sequence_length: int = 6144
    """Token budget of one packed row, in tokens that are expected to enter the language model. No sample may have more
    than this with LLaVA-NeXT's visual tokens."""

    packing_estimate: str = "running"
    """What a row is expected to hold: ``running`` goes by how many visual tokens the vision-guided sampler kept in the
    last steps, ``baseline`` assumes that it keeps all."""

    worst_case_factor: float = 2.5
    """A row may hold more than ``max_sequence_length`` tokens if less is compressed than expected, by at most this
    factor: the memory must suffice for that."""

    rows_multiple_of: int = 1
    """The rows of a step are made in multiples of this, equally costly. Set it to the data-parallel size (or a multiple
    of it; times the pipeline stages with virtual stages), so that every rank has as many rows as the others. It decides
    which samples share a row; the data-parallel size never does."""

    decoder: str = "cpu"
    """``cpu`` decodes in the worker processes; ``dali`` decodes and resizes on the GPU, in the trainer's process."""

    num_workers: int = 2
    """Reading processes per data-parallel rank; 0 reads in the trainer's process."""

    prefetch_steps: int = 4
    """Steps that are planned before the current one is done. The rows of one are read ahead, or two rows a worker."""

    on_bad_sample: str = "error"
    """``error`` stops at a sample that cannot be used; ``skip`` counts and lists it and goes on."""
