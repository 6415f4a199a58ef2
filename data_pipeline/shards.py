"""Prepared data sets: WebDataset shards with a manifest, written once and read at random.

A folder holds ``shard-000000.tar`` and so on (image bytes untouched, one json a sample), ``manifest.parquet``
(``manifest.SCHEMA``), ``dataset.json`` (version, counts, hashes) and, where samples were left out, ``left_out.jsonl``.
"""

import hashlib
import json
import os
import shutil
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast
from webdataset.writer import ShardWriter

from data_pipeline.config import ImageGeometry
from data_pipeline.conversation import Turn, render
from data_pipeline.decode import decode, probe
from data_pipeline.manifest import FORMAT_VERSION, SCHEMA, Manifest
from data_pipeline.sample import BadSample, Sample, sample_key
from data_pipeline.tokenizer import tokenizer_hash

ON_BAD_SAMPLE = ("error", "skip")
"""What to do about a sample that cannot be used: stop, or count it, list it and go on."""

LEFT_OUT = "left_out.jsonl"
"""Lists the samples that were left out, with reasons."""

_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """What the shards hold of one sample."""

    turns: list[Turn]
    images: list[bytes]


def write_shards(
    samples: Iterable[Sample | BadSample],
    out_dir: str | Path,
    *,
    tokenizer: PreTrainedTokenizerFast,
    template: str,
    geometry: ImageGeometry,
    samples_per_shard: int = 1000,
    on_bad_sample: str = "error",
    total: int | None = None,
) -> dict[str, Any]:
    """Write a data set to ``out_dir``, which must not exist yet.

    Every image is decoded once, so that a damaged file is found here and not in the middle of training. Everything is
    written beside ``out_dir`` and renamed when complete: the folder is whole or absent, also after a kill.

    Args:
        samples: from a source; may come one by one.
        out_dir: the new folder.
        tokenizer: counts the text tokens; its hash is recorded.
        template: one of ``conversation.TEMPLATES``, recorded.
        geometry: only its pixel limit is used; the same data set serves every geometry.
        samples_per_shard: samples in each .tar file.
        on_bad_sample: one of ``ON_BAD_SAMPLE``.
        total: number of samples, for the progress bar.

    Returns:
        What ``dataset.json`` holds.

    Raises:
        ValueError: ``out_dir`` exists, a sample is bad and ``on_bad_sample`` is ``error``, or no sample is left.
    """
    assert on_bad_sample in ON_BAD_SAMPLE and samples_per_shard > 0
    out_dir = Path(out_dir).absolute()
    if out_dir.exists():
        raise ValueError(f"{out_dir}: exists already; choose another folder or remove it")
    aside = out_dir.with_name(f".{out_dir.name}.partial")
    if aside.exists():
        shutil.rmtree(aside)  # left by a run that was killed
    aside.mkdir(parents=True)
    try:
        info = _Writer(aside, tokenizer, template, geometry, samples_per_shard).write(samples, on_bad_sample, total)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    aside.rename(out_dir)
    return info


class ShardReader:
    """Reads any sample of a data set by its place in the manifest; safe to use after a fork.

    Raises:
        ValueError: a shard is missing or does not have its recorded size.
    """

    MAX_OPEN = 64
    """Shards kept open at a time."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self._open: OrderedDict[int, int] = OrderedDict()
        for name, expected in manifest.info["shard_bytes"].items():
            file = manifest.folder / name
            if not file.is_file():
                raise ValueError(f"{file}: no such file, but the manifest lists it")
            if (size := file.stat().st_size) != expected:
                raise ValueError(f"{file}: has {size} bytes instead of {expected}: the shard is truncated or changed")

    def read(self, index: int) -> StoredSample:
        """The json and image bytes of a sample, compared with their hash.

        Raises:
            ValueError: naming shard and sample: the shard ends too early, or the bytes are not those that were written.
        """
        manifest = self.manifest
        text = self._member(index, manifest.json_offset[index], manifest.json_size[index])
        image_places = range(manifest.first_image[index], manifest.first_image[index + 1])
        images = [self._member(index, manifest.image_offset[i], manifest.image_size[i]) for i in image_places]
        if _digest(text, images) != manifest.sha256[index].as_py():
            raise ValueError(f"{manifest.describe(index)}: the bytes differ from those written (SHA-256)")
        turns = [Turn(**turn) for turn in json.loads(text)["turns"]]
        return StoredSample(turns=turns, images=images)

    def close(self) -> None:
        """Close the shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _member(self, index: int, offset: int, size: int) -> bytes:
        descriptor = self._descriptor(int(self.manifest.shard[index]))
        parts, begin, missing = [], int(offset), int(size)
        while missing > 0:  # one call may return less than asked for
            part = os.pread(descriptor, missing, begin)
            if not part:
                raise ValueError(f"{self.manifest.describe(index)}: the shard ends {missing} bytes too early")
            parts.append(part)
            begin, missing = begin + len(part), missing - len(part)
        return b"".join(parts)

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            if len(self._open) >= self.MAX_OPEN:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.manifest.folder / self.manifest.shard_names[shard], os.O_RDONLY)
        return self._open[shard]


class _Writer:
    """Writes one folder; ``write`` is called once."""

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerFast,
        template: str,
        geometry: ImageGeometry,
        samples_per_shard: int,
    ):
        self.folder, self.tokenizer, self.template, self.geometry = folder, tokenizer, template, geometry
        self.samples_per_shard = samples_per_shard
        self.pending: list[dict[str, Any]] = []
        """Manifest rows of the shard being written; their offsets follow when it is closed."""
        self.keys: set[int] = set()
        self.sources: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.shard_bytes: dict[str, int] = {}
        self.left_out: list[dict[str, str]] = []

    def write(self, samples: Iterable[Sample | BadSample], on_bad_sample: str, total: int | None) -> dict[str, Any]:
        manifest_file = self.folder / "manifest.parquet"
        # The pattern goes through the % operator, so a % in the folder's name is doubled.
        pattern = str(self.folder).replace("%", "%%") + "/shard-%06d.tar"
        with pq.ParquetWriter(manifest_file, SCHEMA, compression="zstd") as self.manifest:
            tar_options = {"encoder": False, "mtime": 0.0}  # bytes as they are; the same input gives the same files
            with ShardWriter(
                pattern, maxcount=self.samples_per_shard, post=self._finish_shard, verbose=0, **tar_options
            ) as shards:
                for item in tqdm(samples, total=total, unit="sample", desc="preparing", smoothing=0):
                    try:
                        members, row = self._prepare(item)
                    except ValueError as error:
                        if on_bad_sample == "error":
                            raise
                        self.left_out.append({"id": item.id, "source": item.source, "reason": str(error)})
                        continue
                    shards.write({"__key__": f"{self.totals['samples']:09d}", **members})
                    self._count(row)
        if not self.totals["samples"]:
            reason = f"; the first: {self.left_out[0]['reason']}" if self.left_out else ""
            raise ValueError(f"no sample to write: {len(self.left_out)} were left out{reason}")
        return self._write_info(manifest_file)

    def _prepare(self, item: Sample | BadSample) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The members of a sample's tar entry, and its row of the manifest without offsets."""
        if isinstance(item, BadSample):
            raise ValueError(item.reason)
        key = sample_key(item.source, item.id)
        if key in self.keys:
            raise ValueError(f"sample {item.id!r} of {item.source}: key id: occurs twice in the data set")
        try:
            images = [path.read_bytes() for path in item.images]
            headers = [probe(data, str(path), self.geometry) for data, path in zip(images, item.images, strict=True)]
            for data, path in zip(images, item.images, strict=True):
                decode(data, str(path), self.geometry)
            encoded = render(item.turns, self.tokenizer, self.template)
        except (OSError, ValueError) as error:
            raise ValueError(f"sample {item.id!r} of {item.source}: {error}") from error
        description = {"id": item.id, "source": item.source, "turns": [asdict(turn) for turn in item.turns]}
        text = json.dumps(description, ensure_ascii=False).encode()
        members = {f"{i}.{_SUFFIXES[h.format]}": data for i, (h, data) in enumerate(zip(headers, images, strict=True))}
        row = {
            "key": key,
            "id": item.id,
            "source": item.source,
            "height": [header.height for header in headers],
            "width": [header.width for header in headers],
            "format": [header.format for header in headers],
            "images": len(images),
            "text_tokens": len(encoded.tokens),
            "loss_tokens": int(encoded.loss.sum()),
            "sha256": _digest(text, images),
            "members": [*members, "json"],
        }
        return members | {"json": text}, row

    def _count(self, row: dict[str, Any]) -> None:
        row["name"] = f"{self.totals['samples']:09d}"
        self.pending.append(row)
        self.keys.add(row["key"])
        self.sources[row["source"]] += 1
        self.totals["samples"] += 1
        for column in ("images", "text_tokens", "loss_tokens"):
            self.totals[column] += row[column]

    def _finish_shard(self, path: str) -> None:
        """Complete the manifest rows of a closed shard with the places of their members."""
        with tarfile.open(path) as tar:
            places = {member.name: (member.offset_data, member.size) for member in tar}
        name = Path(path).name
        for row in self.pending:
            *images, text = [places[f"{row['name']}.{member}"] for member in row["members"]]
            row["shard"] = name
            row["json_offset"], row["json_size"] = text
            row["image_offset"] = [offset for offset, _ in images]
            row["image_size"] = [size for _, size in images]
        self.manifest.write_table(pa.Table.from_pylist(self.pending, schema=SCHEMA))
        self.pending.clear()
        self.shard_bytes[name] = Path(path).stat().st_size

    def _write_info(self, manifest_file: Path) -> dict[str, Any]:
        if self.left_out:
            lines = (json.dumps(entry) + "\n" for entry in self.left_out)
            (self.folder / LEFT_OUT).write_text("".join(lines), encoding="utf-8")
        info = {
            "format_version": FORMAT_VERSION,
            **self.totals,
            "left_out": len(self.left_out),
            "sources": dict(self.sources),
            "chat_template": self.template,
            "tokenizer_sha256": tokenizer_hash(self.tokenizer),
            "manifest_sha256": hashlib.sha256(manifest_file.read_bytes()).hexdigest(),
            "shard_bytes": self.shard_bytes,
        }
        (self.folder / "dataset.json").write_text(json.dumps(info, indent=2) + "\n")
        return info


def _digest(text: bytes, images: list[bytes]) -> bytes:
    digest = hashlib.sha256(text)
    for image in images:
        digest.update(image)
    return digest.digest()
