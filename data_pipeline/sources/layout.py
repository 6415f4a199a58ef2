"""Finding the files of a data set in the folder that the user names."""

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.conversations.conversation import shown
from data_pipeline.errors import SampleError
from data_pipeline.sample import ImageBytes, ImageFile


def existing_folder(folder: Path, role: str) -> Path:
    """The folder.

    Raises:
        ValueError: it does not exist; ``role`` says what it is for.
    """
    if not folder.is_dir():
        raise ValueError(f"{role} {folder}: no such folder")
    return folder


def choose_annotations(folder: Path, accepted: Sequence[str], chosen: str | None) -> str:
    """Which one of the accepted annotation files, folders or patterns the data set folder has.

    Args:
        folder: the data set's folder.
        accepted: paths and glob patterns relative to it.
        chosen: the one that the user asks for (option ``file``), needed where several are there.

    Raises:
        ValueError: none is there, or several and none was chosen, or the chosen one is not among them.
    """
    existing_folder(folder, "data set folder")
    if chosen is not None and chosen not in accepted:
        raise ValueError(f"file={chosen}: not known to this kind, expected one of {', '.join(accepted)}")
    candidates = accepted if chosen is None else [chosen]
    found = [name for name in candidates if _exists(folder, name)]
    if not found:
        raise ValueError(f"{folder}: expected {' or '.join(candidates)}, found none")
    if len(found) > 1:
        raise ValueError(f"{folder}: has {' and '.join(found)}; choose with file=, such as file={found[0]}")
    return found[0]


def _exists(folder: Path, pattern: str) -> bool:
    try:
        return any(folder.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"{pattern!r}: expected a pattern relative to {folder}") from error


def find_image(folder: Path, value: Any, key: str, suffixes: Sequence[str] = ()) -> ImageFile | ImageBytes:
    """The image at a path of a data set, which is relative to ``folder`` or lies in it, or in a ``data:`` URI.

    Args:
        folder: the image folder.
        value: what the data set says.
        key: where it says so, for messages.
        suffixes: tried in place of the path's own, in this order, where no file has that.

    Raises:
        SampleError: not a path, one that leaves the folder, no file, or a broken URI.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise SampleError("bad image path", f"key {key}: expected a path or a list of paths, not {shown(value)}")
    if value.startswith("data:"):
        return ImageBytes(name=f"in key {key}", data=_data_of_uri(value, key))
    # Judged by the text of the path: image folders are often links to other disks, which is the user's choice.
    relative = os.path.normpath(value)
    if os.path.isabs(relative):
        relative = os.path.relpath(relative, os.path.abspath(folder))
    if (first := relative.split(os.sep)[0]) in (os.curdir, os.pardir):
        wrong = "leaves the image folder" if first == os.pardir else "is the image folder"
        raise SampleError("bad image path", f"key {key}: {shown(value)} {wrong} {folder}")
    path = folder / relative
    try:
        for candidate in (path, *(path.with_suffix(suffix) for suffix in suffixes)):
            if candidate.is_file():
                return ImageFile(candidate)
    except OSError as error:  # a name too long, a folder that may not be entered
        raise SampleError("unreadable image", f"key {key}: {shown(value)} in {folder}: {error.strerror}") from error
    raise SampleError("missing image", f"key {key}: {shown(value)} is not a file in {folder}")


def _data_of_uri(uri: str, key: str) -> bytes:
    """The bytes of ``data:image/png;base64,...``; a record's own limit bounds their number."""
    header, comma, content = uri.partition(",")
    if not comma or not header.endswith(";base64"):
        raise SampleError("bad data URI", f"key {key}: expected data:...;base64,... and not {shown(uri)}")
    try:
        return base64.b64decode(content, validate=True)
    except ValueError as error:
        raise SampleError("bad data URI", f"key {key}: {shown(uri)} is not base64 ({error})") from error
