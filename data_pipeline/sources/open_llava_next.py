"""Open-LLaVA-NeXT's instruction mix of 1M conversations (huggingface.co/datasets/Lin-Chen/Open-LLaVA-NeXT-mix1M)."""

from pathlib import Path

from data_pipeline.sources.base import Source
from data_pipeline.sources.layout import choose_annotations
from data_pipeline.sources.sharegpt4v import ShareGpt4V

FILES = [f"{folder}open-llava-next_instruct_mix1M.json" for folder in ("open-llava-next/", "")]


class OpenLlavaNext(ShareGpt4V):
    """The whole mix of stage 2 in one file: ShareGPT4V's with ALLaVA-VFLAN, DocVQA, SynthDoG-EN and the others.

    Layout: ``open-llava-next/open-llava-next_instruct_mix1M.json`` (or the file itself) beside the folders that its
    paths begin with: those of ``sharegpt4v``, ``allava_vflan/images/images_191task_1k``, and of ``vqa_collection.zip``
    ``ai2d/images``, ``chatqa/train/png`` (so spelled), ``docvqa/train/documents``, ``dvqa/images``, ``geoqa+/images``,
    ``synthdog-en/images``. OCR-VQA's images are found under other suffixes, as in ``sharegpt4v``.

    Count: the authors' page says "1M" and no exact number. Prompts: as published.
    """

    @classmethod
    def open(cls, folder: Path, *, file: str | None = None, images: str = ".", name: str = "open_llava_next") -> Source:
        """Open the folder ``data`` of Open-LLaVA-NeXT; options as for ``sharegpt4v``."""
        return cls(folder / choose_annotations(folder, FILES, file), folder / images, name)
