"""Prepared data sets: WebDataset shards with a manifest, written by any number of processes in any number of attempts.

A finished folder holds ``dataset.json`` (version, counts, hashes), ``manifest.parquet`` (``manifest.SCHEMA``),
``left_out.jsonl`` and ``shards/NAME-000123.tar``. Without ``dataset.json`` it is unfinished: then ``plan.json`` says
with which settings it was begun, and ``parts/`` has a file for each shard that is complete.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.conversations.rendering import Renderer
from data_pipeline.forked import run_forked
from data_pipeline.preparation.left_out import ON_BAD_SAMPLE, LeftOutTally, TooManyLeftOut
from data_pipeline.preparation.merge import merge_shards
from data_pipeline.preparation.part import PartSummary
from data_pipeline.preparation.plan import PlannedShard, describe_settings, plan_shards
from data_pipeline.preparation.progress import PreparationProgress
from data_pipeline.preparation.shard_writer import ShardWriter
from data_pipeline.preparation.unfinished import UnfinishedFolder
from data_pipeline.sample import BadSample
from data_pipeline.sources.base import Source


def prepare(
    sources: Sequence[Source],
    out_dir: str | Path,
    *,
    renderer: Renderer,
    max_image_pixels: int = 100_000_000,
    samples_per_shard: int = 1000,
    num_workers: int = 0,
    task: int = 0,
    num_tasks: int = 1,
    on_bad_sample: str = "error",
    max_left_out: float = 0.05,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Write a data set to ``out_dir``, or go on with one that was begun there with the same settings.

    Every image is decoded once, so that a damaged file is found here and not in the middle of training. What is
    written does not depend on the number of workers, tasks and attempts.

    Args:
        sources: the data sets, in the order of the manifest.
        out_dir: a new or empty folder, or one that an earlier call left unfinished.
        renderer: counts the text tokens; its hash is recorded.
        max_image_pixels: an image with more is a bad sample.
        samples_per_shard: records that go to one .tar file.
        num_workers: processes; 0 for none beside this one.
        task: this call writes every ``num_tasks``-th shard, beginning with this one. Of two calls with the same task
            at the same time, the later one goes on.
        num_tasks: calls that share the work; whichever finds all shards complete finishes the data set.
        on_bad_sample: one of ``ON_BAD_SAMPLE``.
        max_left_out: with ``skip``, the share of a source's samples that may be left out.
        progress: show a bar on stderr.

    Returns:
        What ``dataset.json`` holds; None where shards of other tasks are missing.

    Raises:
        ValueError: ``out_dir`` holds something else, or was begun with other settings (what differs is named); a
            sample is bad and ``on_bad_sample`` is ``error``; too many samples of a source are bad.
        OSError: no space left, or ``out_dir`` cannot be written to. Complete shards are kept.
        ChildProcessError: a worker died; names the shard.
    """
    assert on_bad_sample in ON_BAD_SAMPLE and samples_per_shard > 0 and 0 <= task < num_tasks
    folder = Path(out_dir).absolute()
    shards = plan_shards(sources, samples_per_shard)
    settings = describe_settings(
        sources, renderer, samples_per_shard=samples_per_shard, max_image_pixels=max_image_pixels
    )
    writer = ShardWriter(
        folder=folder, renderer=renderer, max_image_pixels=max_image_pixels, on_bad_sample=on_bad_sample
    )
    max_share = max_left_out if on_bad_sample == "skip" else 0.0
    unfinished = UnfinishedFolder(folder=folder, shards=shards, settings=settings)

    def tally() -> LeftOutTally:
        return LeftOutTally({source.name: len(source) for source in sources}, max_share)

    info = unfinished.finished()
    if info is None:
        try:
            unfinished.begin()
            complete = unfinished.complete()
            # Looked for again: another task may have finished it just now, and then the complete shards are forgotten.
            if (info := unfinished.finished()) is None:
                own = shards[task::num_tasks]
                unfinished.remove_remains([shard for shard in own if shard.name not in complete])
                _write_shards(writer, sources, own, complete, tally(), num_workers, progress)
                if not unfinished.all_complete():
                    return None
                info = merge_shards(folder, shards, sources, settings, tally())
        except FileNotFoundError as error:
            # The same, while this call worked in the folder; or this call's files were taken for a killed one's.
            if (info := unfinished.finished()) is None:
                hint = f"{error.strerror}; is another call at work on the same task of {folder}?"
                raise FileNotFoundError(error.errno, hint, error.filename) from error
        except TooManyLeftOut as error:
            names = [source.name for source in sources]
            unfinished.forget_left_out(names.index(error.source))
            raise
    unfinished.tidy()
    return info


def _write_shards(
    writer: ShardWriter,
    sources: Sequence[Source],
    shards: Sequence[PlannedShard],
    complete: dict[str, PartSummary],
    tally: LeftOutTally,
    num_workers: int,
    show_progress: bool,
) -> None:
    """Write those of the shards that are not complete."""
    for summary in complete.values():
        for sample in summary.left_out:
            tally.add(sample)
    bar = PreparationProgress(shards, complete, show=show_progress)

    def report(left_out: BadSample | None) -> None:
        bar.sample(left_out is not None)
        if left_out is not None:
            tally.add(left_out)

    def write(shard: PlannedShard, report: Callable[[BadSample | None], None]) -> None:
        writer.write(shard, sources[shard.source], report)

    remaining = [shard for shard in shards if shard.name not in complete]
    with bar:
        if num_workers:
            run_forked(write, remaining, num_workers, report, bar.shard)
        else:
            for shard in remaining:
                write(shard, report)
                bar.shard()
