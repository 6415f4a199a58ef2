"""DVQA: questions about synthetic bar charts (github.com/kushalkafle/DVQA_dataset)."""

from pathlib import Path
from typing import Any

from data_pipeline.sources.base import Source
from data_pipeline.sources.image_questions import ImageQuestions
from data_pipeline.sources.layout import choose_annotations
from data_pipeline.sources.llava_json import LlavaRecords
from data_pipeline.sources.prompts import text_of
from data_pipeline.sources.selection import Selection

PUBLISHED = 200_000
LLAVA_FILE = "dvqa_train_200k.jsonl"


class Dvqa(ImageQuestions):
    """One conversation for each chart, with all its questions.

    Layout, one of:

    - ``train_qa.json`` (records of ``image``, ``question``, ``answer``) and ``images/`` with ``bar_train_00000001.png``
      and so on; the validation images may lie there too;
    - ``dvqa_train_200k.jsonl``, InternVL's version in LLaVA's form, with the images relative to the folder.

    Count: 200,000 training charts; LLaVA-NeXT's mix takes about 10,000 of them (``images_limit``), then there is no
    published count. Prompts: LLaVA's suffix for short answers after the first question; InternVL's file keeps its own.
    """

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        file: str | None = None,
        images: str | None = None,
        images_limit: int | None = None,
        seed: int = 0,
        name: str = "dvqa",
    ) -> Source:
        """Open the data set's folder.

        Args:
            folder: see the class.
            file: chooses where both annotation files are there.
            images: where the images are, if elsewhere.
            images_limit: number of charts to draw; None is all.
            seed: of the draw.
            name: the name under which the samples go.

        Raises:
            ValueError: the files are not there or broken.
        """
        chosen = choose_annotations(folder, ["train_qa.json", LLAVA_FILE], file)
        source: Source
        if chosen == LLAVA_FILE:
            source = LlavaRecords(folder / chosen, folder / (images or "."), name, PUBLISHED)
        else:
            source = cls([folder / chosen], folder / (images or "images"), "image", name, PUBLISHED)
        return source if images_limit is None else Selection(source, images_limit, seed)

    def question(self, record: dict[str, Any]) -> tuple[str, str]:
        """See ``ImageQuestions``."""
        return text_of(record, "question", "no question"), text_of(record, "answer", "no answer")
