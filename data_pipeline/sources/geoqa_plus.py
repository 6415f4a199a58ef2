"""GeoQA+: multiple-choice geometry problems in Chinese (github.com/SCNU203/GeoQA-Plus, github.com/chen-judge/GeoQA)."""

from pathlib import Path

from data_pipeline.sources.base import Source, usable_id
from data_pipeline.sources.layout import choose_annotations, existing_folder
from data_pipeline.sources.llava_json import LlavaRecords
from data_pipeline.sources.multiple_choice_files import ChoiceQuestion, MultipleChoice, read_folder

PUBLISHED_LLAVA = 72_318
LLAVA_FILE = "geoqa+.jsonl"


class GeoQaPlus(MultipleChoice):
    """One sample for each problem.

    Layout, one of:

    - ``geoqa+.jsonl``, InternVL's version in LLaVA's form with the augmented problems, and its images relative to the
      folder (``images/...``): what the 1M mix is made of;
    - ``json/0.json`` and so on (``id``, ``subject``, ``choices``, ``label``) with ``image/0.png``: the authors'
      original problems, as GeoQA's ``data.zip`` has them in ``GeoQA3/``. Splits and augmented problems come as pickles,
      which can run code when they are read and are therefore not read; so this form has the problems of all splits, the
      test's too.

    Count: 72,318 in InternVL's file; the authors give none for the folder. Prompts: lettered options and LLaVA's suffix
    for options; the answer is a letter. InternVL's file keeps its own.
    """

    @classmethod
    def open(
        cls, folder: Path, *, file: str | None = None, images: str | None = None, name: str = "geoqa_plus"
    ) -> Source:
        """Open the data set's folder; ``file`` is ``json`` or the .jsonl where both are there, ``images`` is where the
        images are, if elsewhere."""
        chosen = choose_annotations(folder, [LLAVA_FILE, "json"], file)
        if chosen == LLAVA_FILE:
            return LlavaRecords(folder / chosen, folder / (images or "."), name, PUBLISHED_LLAVA)
        image_folder = existing_folder(folder / (images or "image"), "image folder")
        questions = [
            ChoiceQuestion(
                id=usable_id(record.get("id")) or path.stem,
                file=path,
                image_folder=image_folder,
                image=f"{path.stem}.png",
                question=record.get("subject"),
                options=record.get("choices"),
                answer=record.get("label"),
            )
            for path, record in read_folder(folder / chosen)
        ]
        return cls(questions, name)
