"""What every data set gives: its samples, at random, under ids that are unique."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.conversations.conversation import parse_conversation
from data_pipeline.errors import SampleError
from data_pipeline.sample import BadSample, ImageBytes, ImageFile, Sample

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class RawSample:
    """What a data set says of a sample."""

    images: Sequence[ImageFile | ImageBytes]
    conversations: Any
    """In LLaVA's form, not checked yet."""
    changes: Sequence[str] = ()
    """What was changed to read it: a few fixed words for each kind."""
    text_only: bool = False
    """Whether it has no key for images, so that ``<image>`` in it is text; an empty key says that one was lost."""


class Source(ABC):
    """The samples of one data set, read one by one at any index.

    Building one finds the records and their ids; what a sample needs is read when it is asked for. A source may be used
    in processes forked after it was built: nothing that it holds open has a reading position.

    Args:
        name: the name under which its samples go; it stands in file names.
        ids: the published id of every sample, in order. One seen before is numbered: ``id#2``, ``id#3`` and so on.
        digest: SHA-256 of what the samples are made from, images aside: two sources with the same digest and options
            have the same samples.
        published: the number of samples that the authors publish.

    Raises:
        ValueError: the name is not one for a file.
    """

    def __init__(self, name: str, ids: Iterable[str], digest: str, published: int | None = None):
        if not _NAME.fullmatch(name):
            raise ValueError(f"name {name!r}: expected letters, digits and . _ + - after a letter or digit")
        self.name, self.published, self.digest = name, published, digest
        self.options: dict[str, Any] = {}
        self._ids, self.renamed = number_duplicates(ids)

    renamed: int
    """How many ids were numbered because they had been seen before."""
    options: dict[str, Any]
    """Those that ``open_source`` was given."""

    def __len__(self) -> int:
        """Number of samples, good and bad."""
        return len(self._ids)

    def id(self, index: int) -> str:
        """The sample's id, unique within the source."""
        return self._ids[index]

    def __getitem__(self, index: int) -> Sample | BadSample:
        """The sample, or why it cannot be used. Image files are looked for but not opened.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: no sample {index} among {len(self)}")
        try:
            raw = self.read(index)
            conversation = parse_conversation(raw.conversations, len(raw.images), text_only=raw.text_only)
        except SampleError as error:
            return self._bad(index, error)
        except OSError as error:
            return self._bad(index, SampleError("unreadable sample", f"cannot be read ({error.strerror or error})"))
        return Sample(
            id=self.id(index),
            source=self.name,
            images=tuple(raw.images),
            turns=conversation.turns,
            changes=(*raw.changes, *conversation.changes),
        )

    def __iter__(self) -> Iterator[Sample | BadSample]:
        """All of them in order."""
        return (self[index] for index in range(len(self)))

    @abstractmethod
    def read(self, index: int) -> RawSample:
        """The images of a sample, and its conversation.

        Raises:
            SampleError: why it cannot be used.
            OSError: it cannot be read, which is a reason as well.
        """

    @abstractmethod
    def place(self, index: int) -> str:
        """File and id of a sample, for messages."""

    def _bad(self, index: int, error: SampleError) -> BadSample:
        placed = error.at(self.place(index))
        return BadSample(id=self.id(index), source=self.name, reason=placed.reason, message=str(placed))


def usable_id(value: Any) -> str | None:
    """A published id as text, or None where it is no text or whole number, or cannot be written as UTF-8."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value)
    # Half of a surrogate pair, which JSON can hold, has no UTF-8.
    return text if text and text.encode(errors="ignore").decode() == text else None


def number_duplicates(ids: Iterable[str]) -> tuple[list[str], int]:
    """Ids made unique, and how many were changed. The same ids in the same order always give the same result."""
    seen: Counter[str] = Counter()
    unique, renamed = [], 0
    for name in ids:
        seen[name] += 1
        if seen[name] > 1:
            numbered = f"{name}#{seen[name]}"
            while numbered in seen:
                seen[name] += 1
                numbered = f"{name}#{seen[name]}"
            seen[numbered] = 1
            name, renamed = numbered, renamed + 1
        unique.append(name)
    return unique, renamed
