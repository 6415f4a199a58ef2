"""What a data set holds, as text for people: a table of its sources and warnings."""

from typing import Any

from data_pipeline.preparation.plan import file_stem

_HEADER = ("set", "records", "published", "difference", "left out", "samples", "renamed", "shards", "bytes")


def summary_table(info: dict[str, Any]) -> str:
    """A line for each source of ``dataset.json``'s content, and one for all; then why samples were left out, and with
    which changes others were accepted.

    ``records`` counts good and bad samples; ``difference`` is theirs from the published number.
    """
    rows = [_HEADER, *(_row(name, source, info["shard_bytes"]) for name, source in info["sources"].items())]
    size = sum(info["shard_bytes"].values())
    records = info["samples"] + info["left_out"]
    renamed = sum(source["renamed"] for source in info["sources"].values())
    total = (records, "", "", info["left_out"], info["samples"], renamed, len(info["shard_bytes"]), size)
    rows.append(("all", *map(_shown, total)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        cells = [name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(numbers, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    for name, source in info["sources"].items():
        lines += [f"left out of {name}: {count:,} x {reason}" for reason, count in source["left_out_by_reason"].items()]
        lines += [f"changed in {name}: {count:,} x {kind}" for kind, count in source["accepted_with_change"].items()]
    return "\n".join(lines)


def count_warnings(info: dict[str, Any]) -> list[str]:
    """A sentence for each source that has not as many records as its authors publish."""
    return [
        f"{name} has {_records(source):,} records, but {source['published']:,} are published: "
        "is the download complete, and of the same version?"
        for name, source in info["sources"].items()
        if source["published"] not in (None, _records(source))
    ]


def _row(name: str, source: dict[str, Any], shard_bytes: dict[str, int]) -> tuple[str, ...]:
    records, published = _records(source), source["published"]
    sizes = [size for shard, size in shard_bytes.items() if shard.startswith(f"shards/{file_stem(name)}-")]
    difference = "-" if published is None else f"{records - published:+,}" if records != published else "0"
    cells = ("-" if published is None else published, difference, source["left_out"], source["samples"])
    return (name, *map(_shown, (records, *cells, source["renamed"], len(sizes), sum(sizes))))


def _records(source: dict[str, Any]) -> int:
    return source["samples"] + source["left_out"]


def _shown(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value:,}"
