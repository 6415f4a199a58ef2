"""Writes one shard: a WebDataset tar with the images' bytes untouched and one json a sample, and its part file."""

import json
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from data_pipeline.conversations.rendering import Renderer
from data_pipeline.dataset.shard_reader import sample_digest
from data_pipeline.decoding.pillow import decode
from data_pipeline.decoding.probe import probe
from data_pipeline.errors import SampleError
from data_pipeline.preparation.part import PARTS, write_part
from data_pipeline.preparation.plan import PlannedShard
from data_pipeline.preparation.written_aside import written_aside
from data_pipeline.sample import BadSample, Sample, sample_key
from data_pipeline.sources.base import Source

Report = Callable[[BadSample | None], None]
"""Called after each sample: with None where it was written, otherwise with why it was left out."""

_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}


@dataclass(frozen=True, kw_only=True)
class ShardWriter:
    """Writes shards into the folder of a data set. Holds nothing of one shard, so forked processes can share it."""

    folder: Path
    renderer: Renderer
    """Counts the text tokens and finds samples without a label."""
    max_image_pixels: int
    on_bad_sample: str
    """One of ``ON_BAD_SAMPLE``."""

    def write(self, shard: PlannedShard, source: Source, report: Report) -> None:
        """Write the tar, then the part file that makes the shard count as complete.

        Raises:
            ValueError: a sample is bad and ``on_bad_sample`` is ``error``; names source, id and reason.
            OSError: there is no space left, or the folder cannot be written to; names the shard.
        """
        tar = self.folder / shard.tar
        try:
            with written_aside(tar, self.folder / PARTS) as aside:
                rows, left_out, changes = self._write_tar(aside, shard, source, report)
                _add_places(aside, rows)
                shard_bytes = aside.stat().st_size
            if not rows:
                tar.unlink()
                shard_bytes = 0
            write_part(self.folder, shard, [row.columns for row in rows], shard_bytes, left_out, changes)
        except OSError as error:
            raise OSError(error.errno, f"cannot write the shard: {error.strerror}", str(tar)) from error

    def _write_tar(
        self, file: Path, shard: PlannedShard, source: Source, report: Report
    ) -> tuple[list["_Row"], list[BadSample], Counter[str]]:
        rows: list[_Row] = []
        left_out: list[BadSample] = []
        changes: Counter[str] = Counter()
        # Bytes as they are and no times: the same samples give the same file.
        with open(file, "wb") as stream, TarWriter(stream, encoder=False, compress=False, mtime=0.0) as tar:
            for index in range(shard.begin, shard.end):
                prepared = self._prepare(source[index])
                if isinstance(prepared, BadSample):
                    if self.on_bad_sample == "error":
                        raise ValueError(prepared.message)
                    left_out.append(prepared)
                    report(prepared)
                    continue
                members, columns, changed = prepared
                key = shard.key(index)
                tar.write({"__key__": key, **members})
                rows.append(_Row(columns | {"shard": shard.tar}, [f"{key}.{member}" for member in members]))
                changes.update(changed)
                report(None)
        return rows, left_out, changes

    def _prepare(
        self, sample: Sample | BadSample
    ) -> tuple[dict[str, bytes], dict[str, Any], tuple[str, ...]] | BadSample:
        """The members of a sample, images first and json last, its columns of the manifest without places, and what was
        changed to accept it."""
        if isinstance(sample, BadSample):
            return sample
        try:
            return *self._members(sample), sample.changes
        except SampleError as error:
            message = f"sample {sample.id!r} of {sample.source}: {error}"
            return BadSample(id=sample.id, source=sample.source, reason=error.reason, message=message)

    def _members(self, sample: Sample) -> tuple[dict[str, bytes], dict[str, Any]]:
        images = [image.read() for image in sample.images]
        headers = []
        for data, image in zip(images, sample.images, strict=True):
            headers.append(probe(data, image.name, self.max_image_pixels))
            decode(data, image.name, self.max_image_pixels)  # or a damaged file would show in the middle of training
        encoded = self.renderer.render(sample.turns)
        if not encoded.loss[1:].any():  # the first token is never predicted
            raise SampleError("no label", f"template {self.renderer.template}: no token that the loss counts")
        description = {"id": sample.id, "source": sample.source, "turns": [turn.stored() for turn in sample.turns]}
        text = json.dumps(description, ensure_ascii=False).encode()
        members = {f"{i}.{_SUFFIXES[h.format]}": data for i, (h, data) in enumerate(zip(headers, images, strict=True))}
        columns = {
            "key": sample_key(sample.source, sample.id),
            "id": sample.id,
            "source": sample.source,
            "height": [header.height for header in headers],
            "width": [header.width for header in headers],
            "format": [header.format for header in headers],
            "images": len(images),
            "text_tokens": len(encoded.tokens),
            "loss_tokens": int(encoded.loss.sum()),
            "sha256": sample_digest(text, images),
        }
        return members | {"json": text}, columns


@dataclass(frozen=True)
class _Row:
    columns: dict[str, Any]
    """Of the manifest."""
    members: list[str]
    """Names in the tar: images, then the json."""


def _add_places(tar_file: Path, rows: list[_Row]) -> None:
    """Add the places of the members, as a reader of tar files sees them."""
    with tarfile.open(tar_file) as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar}
    for row in rows:
        *images, text = [places[member] for member in row.members]
        row.columns["json_offset"], row.columns["json_size"] = text
        row.columns["image_offset"] = [offset for offset, _ in images]
        row.columns["image_size"] = [size for _, size in images]
