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
    """Where the samples come from and how they are ordered and packed."""

    path: str | None = None
    """Folder written by ``tools/prepare_data.py`` (shards, index, manifest)."""

    tokenizer: str | None = None
    """Folder of a Hugging Face tokenizer with an image token and a pad token of their own."""

    chat_template: str = "llama3"
    """Conversation form: ``llama3``, or ``plain`` for captions (stage 1)."""

    max_sequence_length: int = 6144
    """Token budget of one packed row, counted with the baseline's visual tokens."""

    seed: int = 1234
    """Seed of the sample order."""

    num_workers: int = 2
    """Decoding processes per data-parallel rank; 0 decodes in the trainer's process."""

    on_bad_sample: str = "error"
    """``error`` stops at a sample that cannot be used; ``skip`` counts and lists it and goes on."""
