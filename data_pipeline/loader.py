"""The loader: consecutive steps for one data-parallel rank, prefetched by worker processes, resumed exactly."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data_pipeline.config import DataConfig, ImageGeometry
from data_pipeline.manifest import Manifest
from data_pipeline.steps import LoaderState, StepBatch, StepDataset
from data_pipeline.tokenizer import load_tokenizer, tokenizer_hash


class StepLoader:
    """Iterating gives the ``StepBatch`` of one step after another, without end.

    Two loaders with the same data set, configuration and state give equal steps. The number of workers changes nothing,
    and the number of data-parallel ranks only changes who gets which row.

    Args:
        data: what to read and how to order and pack it.
        geometry: how images are tiled.
        global_batch_size: samples in a step, over all data-parallel ranks.
        data_parallel_rank: this rank. Not the world rank: ranks that share a model replica share its rows.
        data_parallel_size: number of data-parallel ranks.
        state: where to begin; the beginning of the first epoch if None.

    Raises:
        ValueError: naming the configuration key or the file: something is missing, the data set was prepared with
            another tokenizer or template, a sample is too long, or ``state`` belongs to another data set or seed.
            While iterating: a sample cannot be read and ``data.on_bad_sample`` is ``error``.
    """

    def __init__(
        self,
        data: DataConfig,
        geometry: ImageGeometry,
        *,
        global_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        state: LoaderState | None = None,
    ):
        if data.path is None or data.tokenizer is None:
            raise ValueError(f"data.path and data.tokenizer are needed, not {data.path!r} and {data.tokenizer!r}")
        manifest = Manifest.load(data.path)
        tokenizer = load_tokenizer(data.tokenizer)
        _check_text(data, manifest, tokenizer_hash(tokenizer))
        self.state = state or LoaderState(seed=data.seed, epoch=0, position=0, manifest_hash=manifest.hash)
        _check_state(self.state, data, manifest)
        self.num_workers = data.num_workers
        self.manifest = manifest
        self.dataset = StepDataset(
            data,
            geometry,
            manifest,
            tokenizer,
            global_batch_size=global_batch_size,
            data_parallel_rank=data_parallel_rank,
            data_parallel_size=data_parallel_size,
        )

    def __iter__(self) -> Iterator[StepBatch]:
        """Steps from ``state`` on. The workers start here and end when the iterator is dropped."""
        begin = self.state.epoch * len(self.manifest) + self.state.position
        loader = DataLoader(
            _Guarded(self.dataset),
            batch_size=None,
            sampler=_Places(begin, self.dataset.global_batch_size),
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=_ignore_signals,
            # Forked, because a spawned or fork-server worker would import the trainer's main module, Megatron with it,
            # and hold its own copy of the manifest. It is safe here: a worker only runs NumPy, Pillow, the tokenizer
            # and torch on one thread (the DataLoader sets that), and never touches CUDA or NCCL.
            multiprocessing_context="fork" if self.num_workers else None,
            # Of its own: the DataLoader draws a worker seed, which must not advance the trainer's generator.
            generator=torch.Generator(),
        )
        return _raise_errors(iter(loader))


class _Guarded(Dataset[StepBatch | Exception]):
    """Hands errors over as values, so that they are raised in the trainer with their own message.

    Raised through the DataLoader they would carry a worker's traceback as text, and the frames they pass would keep the
    DataLoader from ending its workers.
    """

    def __init__(self, steps: StepDataset):
        self.steps = steps

    def __getitem__(self, begin: int) -> StepBatch | Exception:
        try:
            return self.steps[begin]
        except (ValueError, OSError) as error:
            return error


def _raise_errors(items: Iterator[StepBatch | Exception]) -> Iterator[StepBatch]:
    for item in items:
        if isinstance(item, Exception):
            break
        yield item
    del items  # the last reference: ends the workers
    assert isinstance(item, Exception), "there is always another step"
    raise item


class _Places:
    """Where the global batches begin: ``begin``, ``begin + step`` and so on."""

    def __init__(self, begin: int, step: int):
        self.begin, self.step = begin, step

    def __iter__(self) -> Iterator[int]:
        place = self.begin
        while True:
            yield place
            place += self.step


def _as_it_is(batch: Any) -> Any:
    return batch


def _ignore_signals(worker: int) -> None:
    """Leave signals to the trainer: schedulers send them to every process of a job, and it still needs its batches.

    Only a SIGTERM from the trainer itself ends a worker; otherwise one that is left over could not be stopped at exit.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # A handler would not learn who sent the signal, so it is blocked and waited for.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(trainer: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)


def _check_text(data: DataConfig, manifest: Manifest, tokenizer: str) -> None:
    file = manifest.folder / "dataset.json"
    if manifest.info["tokenizer_sha256"] != tokenizer:
        raise ValueError(
            f"{file}: prepared with another tokenizer than data.tokenizer={data.tokenizer} (tokenizer_sha256 is "
            f"{manifest.info['tokenizer_sha256']}, that tokenizer's {tokenizer}); prepare the data set again"
        )
    if manifest.info["chat_template"] != data.chat_template:
        raise ValueError(
            f"{file}: prepared with chat_template {manifest.info['chat_template']!r}, but data.chat_template is "
            f"{data.chat_template!r}; prepare the data set again"
        )


def _check_state(state: LoaderState, data: DataConfig, manifest: Manifest) -> None:
    if state.manifest_hash != manifest.hash:
        raise ValueError(
            f"{manifest.folder}: the data set is not the one of the checkpoint (its manifest has SHA-256 "
            f"{manifest.hash}, the checkpoint's {state.manifest_hash})"
        )
    if state.seed != data.seed:
        raise ValueError(f"data.seed: is {data.seed}, but the checkpoint's order was made with {state.seed}")
    if state.epoch < 0 or not 0 <= state.position < len(manifest):
        raise ValueError(f"loader state: epoch {state.epoch}, position {state.position} of {len(manifest)} samples")
