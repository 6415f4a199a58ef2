"""Checkpoints that are written while training goes on.

Each rank copies its share to host memory (on CPUs a forked process shares it as it is at that moment); training waits
for this. What several ranks hold is divided among them. That process writes and hashes the files. Once every rank's has
ended, at a later step boundary, rank 0 makes the checkpoint visible.
"""

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, CheckpointingException, save_config
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from megatron_focus.checkpoint.agreement import SaveError, on_rank_0
from megatron_focus.checkpoint.checksums import SUMS_FILE, read_sums, write_sums
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.parallel.megatron_versions import SAVE_OPTIONS

CONFIG_FILE = "config.yaml"
"""The resolved configuration, beside the tensors."""

_FORMAT = ("torch_dist", 1)
_OWN_SUMS = "sums-of-rank-"
_PATIENCE = 120  # seconds; on a machine with too much to do, what is left after the last file has taken more than ten


class CheckpointSaver:
    """Writes the checkpoints of a store, one at a time."""

    def __init__(self, store: CheckpointStore, keep_last: int) -> None:
        self.store, self.keep_last = store, keep_last
        self._queue = AsyncCallsQueue()
        self._saved: Path | None = None
        self._checked = False
        self._strategy = _Strategy(*_FORMAT)
        self._parallel_strategy = FullyParallelSaveStrategyWrapper(
            self._strategy, parallel_state.get_data_parallel_group(), do_cache_distribution=True
        )

    def start(self, content: dict[str, Any], iteration: int, config_yaml: str, metadata: dict | None = None) -> None:
        """Begin to write ``content`` (collective); the one before must have ended.

        Args:
            content: sharded state of this rank and plain values that are equal on all ranks.
            iteration: its number.
            config_yaml: the resolved configuration.
            metadata: Megatron's description of the content.

        Raises:
            SaveError: the folder cannot be written; on all ranks.
            ValueError: the checkpoint exists already.
            RuntimeError: rank 0 could not write the plain values, although there was room; the others are not told.
        """
        assert self._queue.get_num_unfinalized_calls() == 0, "one checkpoint at a time"
        folder = self.store.begin(iteration)
        self._strategy.problem = ""
        # Megatron starts a helper process here, which must not die of a signal that is meant for the trainer.
        with _signals_deferred():
            request = dist_checkpointing.save(
                content,
                str(folder),
                self._parallel_strategy,
                content_metadata=metadata,
                async_sharded_save=True,
                # All shards of all ranks are compared on rank 0: once is enough for a run.
                validate_access_integrity=not self._checked,
                **SAVE_OPTIONS,
            )
            self._checked = True
            written, _ = request.finalize_fns  # the second writes a file on rank 0 while others wait: see _complete
            complete = partial(self._complete, written, folder, iteration, config_yaml)
            write = request.async_fn and partial(_write_and_sum, request.async_fn, folder)
            self._queue.schedule_async_request(request._replace(async_fn=write, finalize_fns=[complete]))

    def poll(self) -> Path | None:
        """The checkpoint that has become complete since the last call, if any (collective).

        Raises:
            SaveError: it could not be written; on all ranks.
        """
        return self._finish(blocking=False)

    def wait(self) -> Path | None:
        """As ``poll``, once the checkpoint under way has ended."""
        return self._finish(blocking=True)

    def _finish(self, *, blocking: bool) -> Path | None:
        self._saved = None
        self._queue.maybe_finalize_async_calls(blocking=blocking)
        return self._saved

    def _complete(self, written: Callable[[], None], folder: Path, iteration: int, config_yaml: str) -> None:
        """All ranks have written, well or badly."""
        try:
            written()
        except (CheckpointException, CheckpointingException) as error:
            causes = getattr(error, "failures", {}).values()
            reasons = {str(cause[0] if isinstance(cause, tuple) else cause) for cause in causes}
            problem = "; ".join(sorted(reasons)) or "a rank could not write its files"
        else:
            problem = ""
        self._saved = on_rank_0(lambda: self._commit(problem or self._strategy.problem, folder, iteration, config_yaml))

    def _commit(self, problem: str, folder: Path, iteration: int, config_yaml: str) -> Path:
        try:
            if problem:
                # PyTorch's writer often puts a reason of its own before the operating system's.
                free = shutil.disk_usage(folder).free / 2**20
                raise SaveError(f"{folder} cannot be written ({free:,.0f} MiB are free there): {problem}")
            save_config(CheckpointingConfig(*_FORMAT), str(folder))
            (folder / CONFIG_FILE).write_text(config_yaml)
            _gather_sums(folder)
            return self.store.commit(folder, iteration, self.keep_last)
        except ValueError as error:
            raise SaveError(str(error)) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # renamed if it is complete; else its room may be needed


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Processes started here never see the signals that schedulers send to all processes of a job."""
    # Python starts this helper with the first process, and opens the mask for it.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Strategy(TorchDistSaveShardedStrategy):
    """Megatron's strategy, where one rank's failure at the end does not leave the others waiting."""

    problem: str = ""

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any, *more: Any) -> AsyncRequest:
        finish, results = writer.finish, writer.retrieve_write_results

        def finish_or_remember(*arguments: Any) -> None:
            try:
                finish(*arguments)
            except OSError as error:
                self.problem = str(error)

        def results_or_failure() -> Any:
            try:
                return results()
            except (OSError, EOFError) as error:  # the process that passes them on has died
                return _wrap_exception(error)

        writer.finish, writer.retrieve_write_results = finish_or_remember, results_or_failure
        return super()._get_save_and_finalize_callbacks(writer, save_state_dict_ret, *more)


def _write_and_sum(write: Callable[..., None], folder: Path, rank: int, buckets: list, results: Any) -> None:
    """In the writing process: write this rank's files, then hash what is on disk."""
    written = threading.Event()
    threading.Thread(target=_end_if_abandoned, args=(written,), daemon=True).start()
    write(rank, buckets, results)
    written.set()
    names = [bucket[1] for bucket in buckets]
    if all((folder / name).exists() for name in names):  # else the results say what went wrong
        write_sums(folder, names, f"{_OWN_SUMS}{rank}")


def _end_if_abandoned(written: threading.Event) -> None:
    """Megatron-Core 0.16 writes each file in a process of its own, and waits for ever for one that was killed, as
    happens when memory runs out. This ends the wait. 0.19 writes in threads, and nobody is left alone."""
    seconds_alone, seen = 0, False
    while not written.wait(1.0):
        children = psutil.Process().children()
        seen = seen or bool(children)
        if any(map(_ended_badly, children)):
            os._exit(1)
        # How one ended may have been asked, and forgotten, while the next was started.
        seconds_alone = seconds_alone + 1 if seen and not any(map(_runs, children)) else 0
        if seconds_alone == _PATIENCE:
            os._exit(1)


def _ended_badly(process: psutil.Process) -> bool:
    """Whether a child was killed or failed; whoever waits for it can still ask."""
    try:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # somebody has
        return False
    return ended is not None and (ended.si_code != os.CLD_EXITED or ended.si_status != 0)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _gather_sums(folder: Path) -> None:
    """One file of sums from those of the ranks and the files of rank 0."""
    parts = sorted(folder.glob(f"{_OWN_SUMS}*"))
    sums = {name: digest for part in parts for name, digest in read_sums(part).items()}
    for part in parts:
        part.unlink()
    names = {path.name for path in folder.iterdir()}
    if missing := sorted(name for name in names - sums.keys() if name.endswith(".distcp")):
        raise SaveError(f"{folder}: a writer ended before it had hashed {', '.join(missing)}")
    write_sums(folder, names - sums.keys(), SUMS_FILE)
    with (folder / SUMS_FILE).open("a") as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
