"""ShareGPT4V's instruction mix: 665,058 conversations (huggingface.co/datasets/Lin-Chen/ShareGPT4V)."""

from pathlib import Path
from typing import Any

from data_pipeline.sample import ImageBytes, ImageFile
from data_pipeline.sources.base import Source
from data_pipeline.sources.layout import choose_annotations, find_image
from data_pipeline.sources.llava_json import LlavaRecords

PUBLISHED = 665_058
_STEM = "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k"
FILES = [f"{folder}{_STEM}{suffix}" for folder in ("", "sharegpt4v/") for suffix in (".json", ".jsonl")]
OCR_VQA_SUFFIXES = (".jpg", ".png", ".gif", ".jpeg")


class ShareGpt4V(LlavaRecords):
    """The instruction mix of stage 2.

    Layout: the file (also in a subfolder ``sharegpt4v/``; ``.jsonl`` as InternVL publishes it) beside the folders that
    its paths begin with: ``coco/train2017``, ``gqa/images``, ``ocr_vqa/images``, ``textvqa/train_images``,
    ``vg/VG_100K``, ``vg/VG_100K_2``, ``sam/images``, ``web-celebrity/images``, ``web-landmark/images``,
    ``wikiart/images``, ``share_textvqa/images``, ``llava/llava_pretrain/images``. Rows without an image are text only.
    OCR-VQA's images are found under another suffix than the file says, as its download keeps each one's own. Prompts:
    as published, with LLaVA's suffixes for short answers and options.
    """

    @classmethod
    def open(cls, folder: Path, *, file: str | None = None, images: str = ".", name: str = "sharegpt4v") -> Source:
        """Open the data set's folder.

        Args:
            folder: has the file.
            file: chooses among several annotation files.
            images: where ``coco`` and so on lie, relative to the folder.
            name: the name under which the samples go.
        """
        return cls(folder / choose_annotations(folder, FILES, file), folder / images, name, PUBLISHED)

    def find_image(self, value: Any) -> ImageFile | ImageBytes:
        """See ``LlavaRecords``."""
        other = OCR_VQA_SUFFIXES if isinstance(value, str) and value.startswith("ocr_vqa/") else ()
        return find_image(self.images, value, "image", other)
