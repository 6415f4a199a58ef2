"""Runs a function on several ranks, each a process of its own.

Where there is no CUDA, ranks are forked from a server that has Megatron imported already, so a test pays the imports
once per session. Where there is, each rank imports for itself: Megatron and Transformer Engine ask for CUDA at import,
and no process that was forked after that can use it.
"""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import wait
from typing import Any
from unittest.mock import patch

import torch


@cache
def start_context(new_interpreter: bool) -> Any:
    """How ranks are started."""
    if new_interpreter:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    return context


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0, bare: bool = False
) -> list[Any]:
    """``function(*args)`` on ``world_size`` ranks; returns what each rank returned, in rank order.

    ``bare``: in new interpreters that have not imported Megatron, as where there is CUDA.

    Raises:
        AssertionError: a rank failed (its traceback is the message), died, or did not finish in ``timeout`` seconds.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    context, processes, pipes = start_context(bare or torch.cuda.is_available()), [], []
    # NCCL takes one rank a GPU: more ranks than those run on the CPU, by gloo.
    environment = {"CUDA_VISIBLE_DEVICES": ""} if 0 < torch.cuda.device_count() < world_size else {}
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_rank_main, args=(sender, function, args, rank, world_size, port))
        with patch.dict(os.environ, environment):  # unpickling what they run asks for CUDA already
            process.start()
        sender.close()
        processes.append(process)
        pipes.append(receiver)
    results: dict[int, Any] = {}
    failure = None
    try:
        while len(results) < world_size and failure is None:
            ready = wait([p for r, p in enumerate(pipes) if r not in results], timeout=timeout)
            if not ready:
                failure = f"no rank reported within {timeout} s"
            for pipe in ready:
                rank = pipes.index(pipe)
                try:
                    ok, value = pipe.recv()
                except EOFError:
                    failure = f"rank {rank} died without a word"
                    break
                if not ok:
                    failure = f"rank {rank}:\n{value}"
                    break
                results[rank] = pickle.loads(value)
    finally:
        for process in processes:
            if failure is not None:
                process.kill()
            process.join()
    assert failure is None, failure
    return [results[rank] for rank in range(world_size)]


def _rank_main(
    sender: Any,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    world_size: int,
    port: int,
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    try:
        value = function(*args)
        from megatron_focus.parallel.initialize import shut_down  # imports Megatron

        if torch.distributed.is_initialized():  # a peer that is still at work would lose this rank's connections
            torch.distributed.barrier()
        shut_down()
        # Pickled here, by value: torch would share memory of a rank that is gone before the parent looks.
        sender.send((True, pickle.dumps(value)))
    except BaseException:
        sender.send((False, traceback.format_exc()))
    sender.close()
