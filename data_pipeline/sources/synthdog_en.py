"""SynthDoG-EN: images of synthetic English documents (github.com/clovaai/donut, naver-clova-ix/synthdog-en)."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.conversations.conversation import IMAGE_TOKEN
from data_pipeline.errors import SampleError
from data_pipeline.sources.base import RawSample, Source, usable_id
from data_pipeline.sources.json_records import JsonRecords
from data_pipeline.sources.layout import choose_annotations, existing_folder, find_image
from data_pipeline.sources.llava_json import LlavaRecords
from data_pipeline.sources.parquet import Parquet
from data_pipeline.sources.prompts import TRANSCRIBE, turns

PUBLISHED = 29_765
LLAVA_FILE = "synthdog_en.jsonl"
METADATA = ["metadata.jsonl", "train/metadata.jsonl"]
PARQUET = "data/train-*.parquet"


class SynthDogEn(Source):
    """One sample for each document image: its text is to be transcribed.

    Layout, one of:

    - ``data/train-*.parquet`` as on Hugging Face, with columns ``image`` and ``ground_truth``, a JSON text
      ``{"gt_parse": {"text_sequence": "..."}}``; of its 84 training files, the mix has the first five
      (``files=data/train-0000[0-4]-*.parquet``);
    - ``metadata.jsonl`` (or ``train/metadata.jsonl``) with ``file_name`` and ``ground_truth`` beside the images, as
      donut's generator writes it;
    - ``synthdog_en.jsonl``, InternVL's version in LLaVA's form, with the images relative to the folder.

    Count: 29,765, the first five files. Prompts: one request to transcribe; InternVL's file keeps its own.
    """

    def __init__(self, file: Path, images: Path, name: str):
        self.file, self.images = file, existing_folder(images, "image folder")
        names: list[str] = []
        self.records = JsonRecords(file, lambda record: names.append(_file_name(record) or f"entry {len(names)}"))
        super().__init__(name, names, self.records.digest, PUBLISHED)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        file: str | None = None,
        files: str = PARQUET,
        images: str | None = None,
        name: str = "synthdog_en",
    ) -> Source:
        """Open the data set's folder.

        Args:
            folder: see the class.
            file: ``metadata.jsonl``, ``synthdog_en.jsonl`` or the pattern of the parquet files, where several fit.
            files: pattern of the parquet files to take.
            images: where the images are, if elsewhere; not for parquet files, which hold them.
            name: the name under which the samples go.

        Raises:
            ValueError: the files are not there or broken.
        """
        chosen = choose_annotations(folder, [*METADATA, files, LLAVA_FILE], file)
        if chosen == LLAVA_FILE:
            return LlavaRecords(folder / chosen, folder / (images or "."), name, PUBLISHED)
        if chosen == files:
            if images is not None:
                raise ValueError(f"images={images}: the parquet files hold the images")
            return SynthDogParquet(folder, files, name, conversations="ground_truth", published=PUBLISHED)
        return cls(folder / chosen, folder / images if images else (folder / chosen).parent, name)

    def read(self, index: int) -> RawSample:
        """See ``Source``."""
        record = self.records[index]
        if not isinstance(record, dict):
            raise SampleError("bad record", f"expected an object, not {type(record).__name__}")
        image = find_image(self.images, record.get("file_name"), "file_name")
        return RawSample([image], transcription(record.get("ground_truth"), 1))

    def place(self, index: int) -> str:
        """See ``Source``."""
        return f"{self.file}: sample {self.id(index)!r} (entry {index})"


class SynthDogParquet(Parquet):
    """The same from parquet files; see ``SynthDogEn``."""

    def conversation(self, row: dict[str, Any], num_images: int) -> Any:
        """See ``Parquet``."""
        return transcription(row[self.conversations], num_images)


def transcription(ground_truth: Any, num_images: int) -> list[dict[str, str]]:
    """The conversation of donut's ``ground_truth``.

    Raises:
        SampleError: it is not JSON, or has no ``gt_parse.text_sequence``.
    """
    try:
        value = json.loads(ground_truth)
    except (TypeError, ValueError, RecursionError) as error:
        raise SampleError("broken json", f"key ground_truth: not a JSON text: {ground_truth!r:.80}") from error
    parse = value.get("gt_parse") if isinstance(value, dict) else None
    text = parse.get("text_sequence") if isinstance(parse, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise SampleError("no answer", f"key ground_truth.gt_parse.text_sequence: expected a text, not {text!r}")
    return turns(f"{IMAGE_TOKEN}\n" * num_images + TRANSCRIBE, text)


def _file_name(record: Any) -> str | None:
    return usable_id(record.get("file_name")) if isinstance(record, dict) else None
