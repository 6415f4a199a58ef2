"""ChartQA: questions about charts, human and machine-made (github.com/vis-nlp/ChartQA)."""

from pathlib import Path
from typing import Any

from data_pipeline.sources.base import Source
from data_pipeline.sources.image_questions import ImageQuestions
from data_pipeline.sources.layout import choose_annotations
from data_pipeline.sources.llava_json import LlavaRecords
from data_pipeline.sources.prompts import text_of

PUBLISHED = 18_317
LLAVA_FILE = "chartqa_train_18k.jsonl"


class ChartQa(ImageQuestions):
    """One conversation for each chart: the human questions first, then the machine-made ones.

    Layout, one of:

    - ``train/train_human.json``, ``train/train_augmented.json`` (records of ``imgname``, ``query``, ``label``) and
      ``train/png/``, the authors' "ChartQA Dataset" folder;
    - ``chartqa_train_18k.jsonl``, InternVL's version in LLaVA's form, with the images relative to the folder
      (``train/png/...``).

    Count: 18,317 training charts in both. Prompts: LLaVA's suffix for short answers after the first question;
    InternVL's file keeps its own.
    """

    @classmethod
    def open(cls, folder: Path, *, file: str | None = None, images: str | None = None, name: str = "chartqa") -> Source:
        """Open the data set's folder; ``file`` is ``train/train_human.json`` or the .jsonl where both are there,
        ``images`` is where the images are, if elsewhere."""
        chosen = choose_annotations(folder, ["train/train_human.json", LLAVA_FILE], file)
        if chosen == LLAVA_FILE:
            return LlavaRecords(folder / chosen, folder / (images or "."), name, PUBLISHED)
        files = [folder / chosen, folder / "train/train_augmented.json"]
        return cls(files, folder / (images or "train/png"), "imgname", name, PUBLISHED)

    def question(self, record: dict[str, Any]) -> tuple[str, str]:
        """See ``ImageQuestions``."""
        return text_of(record, "query", "no question"), text_of(record, "label", "no answer")
