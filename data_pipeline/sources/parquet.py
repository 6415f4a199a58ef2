"""Hugging Face data sets as parquet files with an image column."""

from pathlib import Path
from typing import Any

from data_pipeline.sources.base import RawSample, Source, usable_id
from data_pipeline.sources.layout import choose_annotations
from data_pipeline.sources.parquet_rows import ParquetRows, parquet_images
from data_pipeline.sources.prompts import short_answers, text_of


class Parquet(Source):
    """One sample a row.

    Layout: parquet files anywhere in the folder. The image column has Hugging Face's struct of ``bytes`` and ``path``,
    or bytes, or a path relative to the folder, or a list of these, or null for text only. The conversation is a column
    of LLaVA's ``{"from", "value"}`` turns, or a question column and an answer column. Prompts: as the conversation has
    them; questions get LLaVA's suffix for short answers.

    Args:
        folder: the folder.
        files: glob pattern of the files in it; they count in the order of their names.
        name: the name under which the samples go.
        image: name of the image column.
        conversations: name of the conversation column; used where no question column is given.
        question: name of the question column.
        answer: name of the answer column.
        id: name of the id column; None is ``id`` where every file has it, else file name and row.
        published: the number of samples that the authors publish.

    Raises:
        ValueError: no file matches, or see ``ParquetRows``.
    """

    def __init__(
        self,
        folder: Path,
        files: str,
        name: str,
        *,
        image: str = "image",
        conversations: str = "conversations",
        question: str | None = None,
        answer: str | None = None,
        id: str | None = None,
        published: int | None = None,
    ):
        if (question is None) != (answer is None):
            raise ValueError("question and answer: both name a column, or neither does")
        self.folder, self.image = folder, image
        self.conversations, self.question, self.answer = conversations, question, answer
        text = [conversations] if question is None or answer is None else [question, answer]
        choose_annotations(folder, [files], None)
        paths = sorted(folder.glob(files))
        self.rows = ParquetRows(paths, [image, *text])
        super().__init__(name, self._published_ids(id), self.rows.digest, published)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        files: str = "**/*.parquet",
        image: str = "image",
        conversations: str = "conversations",
        question: str | None = None,
        answer: str | None = None,
        id: str | None = None,
        name: str = "parquet",
    ) -> Source:
        """Open the files; options as for the class."""
        return cls(
            folder, files, name, image=image, conversations=conversations, question=question, answer=answer, id=id
        )

    def read(self, index: int) -> RawSample:
        """See ``Source``."""
        row = self.rows[index]
        images = parquet_images(row[self.image], self.folder, self.place(index), self.image)
        return RawSample(images, self.conversation(row, len(images)))

    def conversation(self, row: dict[str, Any], num_images: int) -> Any:
        """The conversation of a row.

        Raises:
            SampleError: it has none.
        """
        if self.question is None or self.answer is None:
            return row[self.conversations]
        pair = text_of(row, self.question, "no question"), text_of(row, self.answer, "no answer")
        return short_answers([pair], num_images)

    def place(self, index: int) -> str:
        """See ``Source``."""
        file, row = self.rows.place(index)
        return f"{file}: row {row} ({self.id(index)!r})"

    def _published_ids(self, column: str | None) -> list[str]:
        names = [f"{file.stem}-{row}" for file, row in map(self.rows.place, range(len(self.rows)))]
        if column is None:
            column = "id" if "id" in self.rows.shared_columns else None
        elif column not in self.rows.shared_columns:
            raise ValueError(f"{self.folder}: not every file has a column {column}")
        if column is None:
            return names
        values = self.rows.column(column)
        return [usable_id(value) or name for name, value in zip(names, values, strict=True)]
