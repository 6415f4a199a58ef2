"""``dataset.json``: what a finished data set says of itself."""

import json
import posixpath
from collections.abc import Mapping
from types import NoneType
from typing import Any

from data_pipeline.conversations.conversation import shown
from data_pipeline.dataset.storage import Storage

DATASET = "dataset.json"

FORMAT_VERSION = 3
"""Version of the files that ``prepare`` writes. ``Manifest`` reads version 2 as well, which counted no changes."""

KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(["samples", "images", "text_tokens", "loss_tokens", "left_out"], (int,)),
    **dict.fromkeys(["chat_template", "rendering_sha256", "manifest_sha256", "shard_folder"], (str,)),
    **dict.fromkeys(["left_out_by_reason", "accepted_with_change", "sources", "shard_bytes"], (dict,)),
}
SOURCE_KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(["samples", "left_out", "renamed"], (int,)),
    **dict.fromkeys(["left_out_by_reason", "accepted_with_change"], (dict,)),
    "published": (int, NoneType),
}


def read_dataset_file(storage: Storage) -> dict[str, Any]:
    """The file's content, checked.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        ValueError: it is broken, of another version, lacks a key, or refers to files outside its folder.
        OSError: the storage does not answer.
    """
    file = storage.place(DATASET)
    try:
        info = json.loads(storage.read(DATASET))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise named(file, error) from error
    except ValueError as error:
        raise ValueError(f"{file}: broken JSON: {error}") from error
    if not isinstance(info, dict):
        raise ValueError(f"{file}: expected an object, not {shown(info)}")
    version = info.get("format_version")
    if version not in (2, FORMAT_VERSION):
        raise ValueError(f"{file}: key format_version is {version!r}, this program reads 2 and {FORMAT_VERSION}")
    if version == 2:
        info["accepted_with_change"] = {}
    _check(file, "", info, KEYS)
    for name, source in info["sources"].items():
        if version == 2 and isinstance(source, dict):
            source["accepted_with_change"] = {}
        _check(file, f"sources.{name}.", source if isinstance(source, dict) else {}, SOURCE_KEYS)
    for name in info["shard_bytes"]:
        if posixpath.isabs(name) or ".." in name.split("/"):
            raise ValueError(f"{file}: key shard_bytes: {name!r} leaves the folder of the shards")
    return info


def named(file: str, error: OSError) -> OSError:
    """The error with the file's name; what may pass and what does not stay different."""
    kind = PermissionError if isinstance(error, PermissionError) else OSError
    return kind(f"{file}: cannot be read ({error})")


def _check(file: str, where: str, values: Mapping[str, Any], keys: Mapping[str, tuple[type, ...]]) -> None:
    names = {int: "a whole number", str: "a text", dict: "an object", NoneType: "null"}
    for key, kinds in keys.items():
        if key not in values:
            raise ValueError(f"{file}: there is no key {where}{key}; prepare the data set again")
        if not isinstance(values[key], kinds):
            expected = " or ".join(names[kind] for kind in kinds)
            raise ValueError(f"{file}: key {where}{key}: expected {expected}, not {shown(values[key])}")
