"""DocVQA: questions about scanned documents (docvqa.org, task 1, single page)."""

from pathlib import Path
from typing import Any

from data_pipeline.errors import SampleError
from data_pipeline.sample import ImageBytes, ImageFile
from data_pipeline.sources.base import Source
from data_pipeline.sources.image_questions import ImageQuestions
from data_pipeline.sources.layout import choose_annotations, find_image
from data_pipeline.sources.llava_json import LlavaRecords
from data_pipeline.sources.prompts import text_of

PUBLISHED = 10_194
PUBLISHED_LLAVA = 10_211
LLAVA_FILE = "docvqa_train_10k.jsonl"
IMAGES = {
    "train/train_v1.0.json": "train/documents",
    "train_v1.0.json": "documents",
    "train/train_v1.0_withQT.json": "train/documents",
    "train_v1.0_withQT.json": "documents",
    "spdocvqa_qas/train_v1.0_withQT.json": "spdocvqa_images",
}
"""The authors' annotation files, of two releases, and where each one's documents are."""


class DocVqa(ImageQuestions):
    """One conversation for each document page.

    Layout, one of:

    - ``train/train_v1.0.json`` with ``train/documents/`` (or both without ``train/``), the first release;
    - ``spdocvqa_qas/train_v1.0_withQT.json`` with ``spdocvqa_images/``, the present one;
    - ``docvqa_train_10k.jsonl``, InternVL's version in LLaVA's form, with the images relative to the folder
      (``train/documents/...``).

    Count: the authors publish 39,463 questions about 10,194 training pages; InternVL's file has 10,211 samples.
    Prompts: LLaVA's suffix for short answers after the first question; of several accepted answers, the first.
    InternVL's file keeps its own prompts.
    """

    @classmethod
    def open(cls, folder: Path, *, file: str | None = None, images: str | None = None, name: str = "docvqa") -> Source:
        """Open the data set's folder; ``file`` chooses among several annotation files, ``images`` is where the images
        are, if elsewhere."""
        chosen = choose_annotations(folder, [*IMAGES, LLAVA_FILE], file)
        if chosen == LLAVA_FILE:
            return LlavaRecords(folder / chosen, folder / (images or "."), name, PUBLISHED_LLAVA)
        documents = folder / (images or IMAGES[chosen])
        return cls([folder / chosen], documents, "image", name, PUBLISHED, list_key="data")

    def question(self, record: dict[str, Any]) -> tuple[str, str]:
        """See ``ImageQuestions``."""
        answers = record.get("answers")
        if not isinstance(answers, list) or not answers:
            raise SampleError("no answer", f"key answers: expected a list of answers, not {answers!r}")
        return text_of(record, "question", "no question"), text_of(
            {"answers[0]": answers[0]}, "answers[0]", "no answer"
        )

    def find_image(self, value: str) -> ImageFile | ImageBytes:
        """See ``ImageQuestions``."""
        return find_image(self.images, value.removeprefix("documents/"), self.image_key)
