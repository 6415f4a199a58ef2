"""LLaVA-Pretrain: 558,128 captions of LAION, CC and SBU images (huggingface.co/datasets/liuhaotian/LLaVA-Pretrain)."""

from pathlib import Path

from data_pipeline.sources.base import Source
from data_pipeline.sources.layout import choose_annotations
from data_pipeline.sources.llava_json import LlavaRecords

PUBLISHED = 558_128
FILE = "blip_laion_cc_sbu_558k.json"


class LlavaPretrain(LlavaRecords):
    """The captions of stage 1.

    Layout: ``blip_laion_cc_sbu_558k.json`` and ``images/`` with the unpacked ``images.zip`` (``00000/000000012.jpg``
    and so on; paths in the file are relative to ``images/``). Prompts: as published, a request for a description;
    the chat template ``plain`` leaves it out.
    """

    @classmethod
    def open(cls, folder: Path, *, name: str = "llava_pretrain") -> Source:
        """Open the data set's folder."""
        return cls(folder / choose_annotations(folder, [FILE], None), folder / "images", name, PUBLISHED)
