"""LLaVA's own form: a .json list or a .jsonl file of ``id``, ``image``, ``conversations``, and a folder of images."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.conversation import parse_conversation
from data_pipeline.sample import BadSample, Sample

DUPLICATE_IDS = ("error", "number")
"""What to do about an id seen before: refuse the sample, or call the second one ``id#2`` and so on."""


class LlavaJson:
    """Iterates over the samples of one file.

    ``image`` may be absent (text only), a path or a list of paths, relative to the image folder.

    Args:
        file: the .json or .jsonl file.
        images: the folder that its paths are relative to.
        source: the name under which the samples go.
        duplicate_ids: one of ``DUPLICATE_IDS``. Published mixes repeat ids, as several conversations about one image
            share its name.

    Raises:
        ValueError: the file is not JSON (with line and column), or not a list of samples.
    """

    def __init__(self, file: Path, images: Path, source: str, duplicate_ids: str = "error"):
        assert duplicate_ids in DUPLICATE_IDS
        self.file, self.images, self.source = Path(file), Path(images), source
        self.duplicate_ids = duplicate_ids
        if not self.images.is_dir():
            raise ValueError(f"image folder {self.images}: no such folder")
        try:
            text = self.file.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise ValueError(f"{self.file}: no such file") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.file}: not UTF-8 text ({error})") from error
        self.records = self._parse_lines(text) if self.file.suffix == ".jsonl" else self._parse_list(text)

    def __len__(self) -> int:
        """Number of samples, good and bad."""
        return len(self.records)

    def __iter__(self) -> Iterator[Sample | BadSample]:
        """Each sample, or why it cannot be used. Images are looked for but not opened."""
        seen: Counter[str] = Counter()
        for where, record in self.records:
            name = where
            try:
                name = self._id(record)
                seen[name] += 1
                if seen[name] > 1:
                    name = self._renamed(name, seen)
                images = self._images(record)
                turns = parse_conversation(record.get("conversations"), len(images))
                yield Sample(id=name, source=self.source, images=images, turns=tuple(turns))
            except ValueError as error:
                sample = where if name == where else f"sample {name!r} ({where})"
                yield BadSample(id=name, source=self.source, reason=f"{self.file}: {sample}: {error}")

    def _parse_list(self, text: str) -> list[tuple[str, Any]]:
        records = self._parse(text, first_line=1)
        if not isinstance(records, list):
            raise ValueError(f"{self.file}: expected a list of samples, not {type(records).__name__}")
        return [(f"entry {index}", record) for index, record in enumerate(records)]

    def _parse_lines(self, text: str) -> list[tuple[str, Any]]:
        # Not splitlines(): JSON strings may hold U+2028 and other characters that it would break at.
        lines = enumerate(text.split("\n"), start=1)
        return [(f"line {number}", self._parse(line, number)) for number, line in lines if line.strip()]

    def _parse(self, text: str, first_line: int) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            line = first_line + error.lineno - 1
            raise ValueError(f"{self.file}: line {line} column {error.colno}: broken JSON: {error.msg}") from error

    def _id(self, record: Any) -> str:
        if not isinstance(record, dict):
            raise ValueError(f"expected an object, not {type(record).__name__}")
        value = record.get("id")
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise ValueError(f"key id: expected a text or a whole number, not {value!r}")
        return str(value)

    def _renamed(self, name: str, seen: Counter[str]) -> str:
        if self.duplicate_ids == "error":
            raise ValueError(f"key id: {name!r} was seen before (duplicate ids can be numbered instead)")
        numbered = f"{name}#{seen[name]}"
        while numbered in seen:
            seen[name] += 1
            numbered = f"{name}#{seen[name]}"
        seen[numbered] += 1
        return numbered

    def _images(self, record: dict[str, Any]) -> tuple[Path, ...]:
        value = record.get("image")
        if value is None:
            return ()
        paths = value if isinstance(value, list) else [value]
        return tuple(self._image(path) for path in paths)

    def _image(self, value: Any) -> Path:
        if not isinstance(value, str) or not value:
            raise ValueError(f"key image: expected a path or a list of paths, not {value!r}")
        # Judged by the text of the path: image folders are often links to other disks, which is the user's choice.
        relative = os.path.normpath(value)
        if os.path.isabs(relative) or relative.split(os.sep)[0] == "..":
            raise ValueError(f"key image: {value!r} leaves the image folder {self.images}")
        path = self.images / relative
        if not path.is_file():
            raise ValueError(f"key image: {value!r} is not a file in {self.images}")
        return path
