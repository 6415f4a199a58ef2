"""Files of single questions about images, as the VQA sets publish them: one sample for each image."""

from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import SampleError
from data_pipeline.sample import ImageBytes, ImageFile
from data_pipeline.sources.base import RawSample, Source, usable_id
from data_pipeline.sources.json_records import JsonRecords
from data_pipeline.sources.layout import existing_folder, find_image
from data_pipeline.sources.prompts import short_answers


class ImageQuestions(Source):
    """One conversation of short answers for each image, in the order in which the files first name it.

    Within one, the questions keep the files' order. The id is the image's name. Memory: 32 bytes a question and the
    names of the images.

    Args:
        files: lists of records, one question each.
        images: the image folder.
        image_key: the key of a record that names its image.
        name: the name under which the samples go.
        published: the number of images that the authors publish.
        list_key: the key under which each file has its list; None where the list is all.

    Raises:
        ValueError: see ``JsonRecords``; or the image folder does not exist.
    """

    def __init__(
        self,
        files: Sequence[Path],
        images: Path,
        image_key: str,
        name: str,
        published: int | None = None,
        *,
        list_key: str | None = None,
    ):
        self.images, self.image_key = existing_folder(images, "image folder"), image_key
        numbers: dict[str, int] = {}
        image_of_question = array("q")
        visit = self._counter(numbers, image_of_question)
        self.records = [JsonRecords(file, visit, key=list_key) for file in files]
        self._file_ends = list(accumulate(len(records) for records in self.records))
        by_question = np.frombuffer(image_of_question, dtype=np.int64)
        # Stable: questions of one image stay in order.
        self._questions = np.argsort(by_question, kind="stable")
        self._begins = np.searchsorted(by_question[self._questions], np.arange(len(numbers) + 1))
        super().__init__(name, numbers, "+".join(records.digest for records in self.records), published)

    @abstractmethod
    def question(self, record: dict[str, Any]) -> tuple[str, str]:
        """Question and answer of a record.

        Raises:
            SampleError: it has none.
        """

    def find_image(self, value: str) -> ImageFile | ImageBytes:
        """The file of an image name."""
        return find_image(self.images, value, self.image_key)

    def read(self, index: int) -> RawSample:
        """See ``Source``."""
        records = [self._record(int(question)) for question in self._of_image(index)]
        for record in records:
            if self._image_name(record) is None:
                raise SampleError(
                    "bad record", f"expected an object with a text under {self.image_key}: {record!r:.80}"
                )
        image = self.find_image(records[0][self.image_key])
        return RawSample([image], short_answers(map(self.question, records)))

    def place(self, index: int) -> str:
        """See ``Source``."""
        file, entry = self._locate(int(self._of_image(index)[0]))
        return f"{self.records[file].file}: image {self.id(index)!r} (first at entry {entry})"

    def _counter(self, numbers: dict[str, int], image_of_question: "array[int]") -> Callable[[Any], None]:
        def visit(record: Any) -> None:
            # A record without an image is a sample of its own, left out when it is read.
            name = self._image_name(record) or f"entry {len(image_of_question)}"
            image_of_question.append(numbers.setdefault(name, len(numbers)))

        return visit

    def _image_name(self, record: Any) -> str | None:
        value = record.get(self.image_key) if isinstance(record, dict) else None
        return usable_id(value) if isinstance(value, str) else None

    def _of_image(self, index: int) -> Any:
        return self._questions[self._begins[index] : self._begins[index + 1]]

    def _locate(self, question: int) -> tuple[int, int]:
        file = bisect_right(self._file_ends, question)
        return file, question - (self._file_ends[file - 1] if file else 0)

    def _record(self, question: int) -> Any:
        file, entry = self._locate(question)
        return self.records[file][entry]
