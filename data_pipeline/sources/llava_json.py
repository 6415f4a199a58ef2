"""LLaVA's own form: a .json list or a .jsonl file of ``id``, ``image``, ``conversations``, and a folder of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import SampleError
from data_pipeline.sample import ImageFile
from data_pipeline.sources.base import Source, usable_id
from data_pipeline.sources.json_records import JsonRecords
from data_pipeline.sources.layout import existing_folder, find_image


class LlavaRecords(Source):
    """The samples of one file.

    ``image`` may be absent (text only), a path or a list of paths, relative to the image folder.

    Args:
        file: the .json or .jsonl file.
        images: the folder that its paths are relative to.
        name: the name under which the samples go.
        published: the number of samples that the authors publish.

    Raises:
        ValueError: the file is not a list in JSON, or the image folder does not exist; see ``JsonRecords``.
    """

    def __init__(self, file: Path, images: Path, name: str, published: int | None = None):
        self.file, self.images = Path(file), existing_folder(Path(images), "image folder")
        ids: list[str] = []
        self.records = JsonRecords(self.file, lambda record: ids.append(_id(record) or f"entry {len(ids)}"))
        super().__init__(name, ids, self.records.digest, published)

    def read(self, index: int) -> tuple[Sequence[ImageFile], Any]:
        """See ``Source``."""
        record = self.records[index]
        if not isinstance(record, dict):
            raise SampleError("bad record", f"expected an object, not {type(record).__name__}")
        if _id(record) is None:
            raise SampleError("no id", f"key id: expected a text or a whole number, not {record.get('id')!r}")
        value = record.get("image")
        paths = [] if value is None else value if isinstance(value, list) else [value]
        return [self.find_image(path) for path in paths], record.get("conversations")

    def find_image(self, value: Any) -> ImageFile:
        """The file of one image path."""
        return find_image(self.images, value, "image")

    def place(self, index: int) -> str:
        """See ``Source``."""
        entry = f"entry {index}"
        name = self.id(index)
        return f"{self.file}: " + (entry if name == entry else f"sample {name!r} ({entry})")


class LlavaJson(LlavaRecords):
    """A data set of the user's own, or any published one that has this form.

    Layout: a file in the folder (``file``), and the folder that its image paths are relative to (``images``, ``.`` for
    the folder itself). Prompts: as the file has them.
    """

    @classmethod
    def open(cls, folder: Path, *, file: str, images: str = "images", name: str = "llava_json") -> Source:
        """Open ``folder/file`` with the images in ``folder/images``."""
        return cls(folder / file, folder / images, name)


def _id(record: Any) -> str | None:
    return usable_id(record.get("id")) if isinstance(record, dict) else None
