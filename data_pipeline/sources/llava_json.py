"""LLaVA's own form: a .json list or a .jsonl file of ``id``, ``image``, ``conversations``, and a folder of images."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.conversations.conversation import shown
from data_pipeline.errors import SampleError
from data_pipeline.sample import ImageBytes, ImageFile
from data_pipeline.sources.base import RawSample, Source, usable_id
from data_pipeline.sources.json_records import JsonRecords
from data_pipeline.sources.layout import existing_folder, find_image

IMAGE_KEYS = ("image", "images")
OTHER_MEDIA = {"video": "video", "videos": "video", "audio": "audio", "audios": "audio"}
"""Keys of what is not read, and the reason why a row that has it is left out."""


class LlavaRecords(Source):
    """The samples of one file.

    ``image`` may be absent (text only, ``<image>`` included), a path or a list of paths, relative to the image folder,
    or ``data:`` URIs.
    Accepted with a change: ``no id`` (file and line, or entry, instead: the same in every run), ``sample_id`` for id,
    ``images`` for image, ``empty image`` (none is asked about); more in ``parse_conversation``. A row with a video or
    with sound is left out.

    Args:
        file: the .json, .jsonl or .ndjson file, or one of these as .gz.
        images: the folder that its paths are relative to.
        name: the name under which the samples go.
        published: the number of samples that the authors publish.

    Raises:
        ValueError: the file is not a list in JSON, or the image folder does not exist; see ``JsonRecords``.
    """

    def __init__(self, file: Path, images: Path, name: str, published: int | None = None):
        self.file, self.images = Path(file), existing_folder(Path(images), "image folder")
        found: list[str | None] = []
        self.records = JsonRecords(self.file, lambda record: found.append(_id(record)[0]))
        ids = (id or f"{self.file.name}:{self.records.number(index)}" for index, id in enumerate(found))
        super().__init__(name, ids, self.records.digest, published)

    def read(self, index: int) -> RawSample:
        """See ``Source``."""
        record = self.records[index]
        if not isinstance(record, dict):
            raise SampleError("bad record", f"expected an object, not {type(record).__name__}")
        for key, reason in OTHER_MEDIA.items():
            if record.get(key):
                raise SampleError(reason, f"key {key}: only images are read, not {shown(record[key])}")
        paths, changes = _paths(record)
        images = [self._named(self.find_image(path), index) for path in paths]
        return RawSample(
            images,
            record.get("conversations"),
            [*_id(record)[1], *changes],
            text_only=not any(key in record for key in IMAGE_KEYS),
        )

    def find_image(self, value: Any) -> ImageFile | ImageBytes:
        """The file of one image path, or what a ``data:`` URI holds."""
        return find_image(self.images, value, "image")

    def place(self, index: int) -> str:
        """See ``Source``."""
        return f"{self.file}: sample {self.id(index)!r} ({self.records.unit} {self.records.number(index)})"

    def _named(self, image: ImageFile | ImageBytes, index: int) -> ImageFile | ImageBytes:
        return replace(image, name=f"{image.name} of {self.place(index)}") if isinstance(image, ImageBytes) else image


class LlavaJson(LlavaRecords):
    """A data set of the user's own, or any published one that has this form.

    Layout: a file in the folder (``file``), and the folder that its image paths are relative to (``images``, ``.`` for
    the folder itself). Prompts: as the file has them.
    """

    @classmethod
    def open(cls, folder: Path, *, file: str, images: str = "images", name: str = "llava_json") -> Source:
        """Open ``folder/file`` with the images in ``folder/images``."""
        return cls(folder / file, folder / images, name)


def _id(record: Any) -> tuple[str | None, list[str]]:
    """The id that a row has, and what had to be changed for it."""
    if not isinstance(record, dict):
        return None, []
    if (id := usable_id(record.get("id"))) is not None:
        return id, []
    other = usable_id(record.get("sample_id"))
    return other, ["no id" if other is None else "sample_id"]


def _paths(record: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
    """The image paths of a row, and what had to be changed for them."""
    filled = [key for key in IMAGE_KEYS if record.get(key) not in (None, "", [])]
    if len(filled) > 1:
        raise SampleError("bad record", "keys image and images: expected one of them")
    if not filled:
        return [], ["empty image"] if any(key in record for key in IMAGE_KEYS) else []
    value = record[filled[0]]
    return value if isinstance(value, list) else [value], ["images"] if filled == ["images"] else []
