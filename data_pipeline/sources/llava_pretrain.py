"""LLaVA-Pretrain: 558,128 captions of LAION, CC and SBU images (huggingface.co/datasets/liuhaotian/LLaVA-Pretrain)."""

from pathlib import Path

from data_pipeline.sources.base import Source
from data_pipeline.sources.layout import choose_annotations
from data_pipeline.sources.llava_json import LlavaRecords

PUBLISHED = 558_128
_HELD = ("[0-9]" * 5, "*.jpg")
"""What an image folder holds."""
FILE = "blip_laion_cc_sbu_558k.json"


class LlavaPretrain(LlavaRecords):
    """The captions of stage 1.

    Layout: ``blip_laion_cc_sbu_558k.json``, and what ``images.zip`` unpacks to (``00453/004539375.jpg`` and so on) in
    ``images/`` or, as in the published repository, beside the file. Prompts: as published, a request for a description;
    the chat template ``plain`` leaves it out.
    """

    @classmethod
    def open(cls, folder: Path, *, images: str | None = None, name: str = "llava_pretrain") -> Source:
        """Open the data set's folder; ``images`` is where ``00453/`` and so on lie, if elsewhere."""
        file = folder / choose_annotations(folder, [FILE], None)
        found = (place for place in ("images", ".") if any(any((folder / place).glob(held)) for held in _HELD))
        return cls(file, folder / (images or next(found, "images")), name, PUBLISHED)
