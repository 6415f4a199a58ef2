"""How the records of the sources are divided into shards, and the settings that decide what the shards hold."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.conversations.rendering import Renderer
from data_pipeline.dataset.dataset_file import FORMAT_VERSION
from data_pipeline.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """Consecutive records of one source. Shards know nothing of each other, so any process can write any of them."""

    name: str
    """Letters, digits, ``_`` and ``-``, no dot; unique in the data set."""
    source: int
    """Index into the sources."""
    begin: int
    end: int
    """The records ``begin`` to ``end`` (not included) of the source."""

    @property
    def tar(self) -> str:
        """Its file, relative to the data set's folder; also its name in the manifest."""
        return f"shards/{self.name}.tar"

    def key(self, index: int) -> str:
        """What the members of record ``index`` are called in the tar (WebDataset's key)."""
        return f"{self.name.rpartition('-')[0]}-{index:09d}"


def plan_shards(sources: Sequence[Source], samples_per_shard: int) -> list[PlannedShard]:
    """All shards of a data set, in the order of the manifest.

    Raises:
        ValueError: two sources have one name, or names that make the same file names.
    """
    shards: list[PlannedShard] = []
    seen: dict[str, str] = {}
    for number, source in enumerate(sources):
        stem = file_stem(source.name)
        if stem.lower() in seen:  # some file systems do not tell case apart
            raise ValueError(
                f"sources {seen[stem.lower()]!r} and {source.name!r} would write the same files {stem}-*.tar: "
                "give one of them another name"
            )
        seen[stem.lower()] = source.name
        for count, begin in enumerate(range(0, len(source), samples_per_shard)):
            end = min(begin + samples_per_shard, len(source))
            shards.append(PlannedShard(name=f"{stem}-{count:06d}", source=number, begin=begin, end=end))
    return shards


def describe_settings(
    sources: Sequence[Source], renderer: Renderer, *, samples_per_shard: int, max_image_pixels: int
) -> dict[str, Any]:
    """All that decides the bytes of the shards and the manifest, except the image files; serialises to JSON."""
    return {
        "format_version": FORMAT_VERSION,
        "samples_per_shard": samples_per_shard,
        "max_image_pixels": max_image_pixels,
        "chat_template": renderer.template,
        "rendering_sha256": renderer.hash,
        "sources": {source.name: _describe_source(source) for source in sources},
    }


def settings_differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What differs, one sentence each; empty where the settings are the same."""
    sources, wanted_sources = stored.get("sources", {}), wanted["sources"]
    if list(sources) != list(wanted_sources):
        return [f"sources were {', '.join(sources) or 'none'}, now {', '.join(wanted_sources)}"]
    differences = _differences("", stored, wanted)
    for name, source in sources.items():
        differences += _differences(f"source {name}: ", source, wanted_sources[name])
    return differences


def _differences(prefix: str, stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    keys = [key for key in {**stored, **wanted} if key != "sources"]
    return [
        f"{prefix}{key} was {stored.get(key)!r}, now {wanted.get(key)!r}"
        for key in keys
        if stored.get(key) != wanted.get(key)
    ]


def _describe_source(source: Source) -> dict[str, Any]:
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.id(index).encode("utf-8", "surrogatepass") + b"\n")
    return {
        "samples": len(source),
        "ids_sha256": digest.hexdigest(),
        "content_sha256": source.digest,
        "options": source.options,
    }


def file_stem(name: str) -> str:
    """A source's name in file names: letters, digits, ``_`` and ``-``."""
    # At most 64 characters: with number and suffix a member's name stays under the 100 that plain tar headers hold.
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:64] or "_"
