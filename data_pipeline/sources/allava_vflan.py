"""ALLaVA-Instruct-VFLAN-4V: 203,065 questions (huggingface.co/datasets/FreedomIntelligence/ALLaVA-4V)."""

from pathlib import Path

from data_pipeline.sources.base import Source
from data_pipeline.sources.layout import choose_annotations
from data_pipeline.sources.llava_json import LlavaRecords

PUBLISHED = 203_065
FILES = ["allava_vflan/ALLaVA-Instruct-VFLAN-4V.json", "ALLaVA-Instruct-VFLAN-4V.json"]


class AllavaVflan(LlavaRecords):
    """Questions of GPT-4V about Vision-FLAN's images, with long answers.

    Layout: ``allava_vflan/ALLaVA-Instruct-VFLAN-4V.json`` (or the file beside that folder), and
    ``allava_vflan/images/images_191task_1k/`` with Vision-FLAN's unpacked ``image_191-task_1k.zip``; paths in the file
    begin with ``allava_vflan/``. Prompts: as published.
    """

    @classmethod
    def open(cls, folder: Path, *, file: str | None = None, images: str = ".", name: str = "allava_vflan") -> Source:
        """Open the folder that holds ``allava_vflan``.

        Args:
            folder: see the class.
            file: chooses where both files are there.
            images: what the paths in the file are relative to, itself relative to the folder.
            name: the name under which the samples go.
        """
        return cls(folder / choose_annotations(folder, FILES, file), folder / images, name, PUBLISHED)
