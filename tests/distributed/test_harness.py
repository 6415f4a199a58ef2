"""How the ranks of tests are started."""

import multiprocessing
import os

import torch

from tests.distributed import harness
from tests.distributed.harness import run_ranks, start_context


def parent() -> tuple[int, bool]:
    return os.getppid(), torch.cuda.is_initialized()


def test_a_rank_is_never_forked_where_there_is_cuda(monkeypatch):
    """Megatron asks for CUDA when it is imported, and CUDA cannot be used in a process forked after that."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    started = []
    monkeypatch.setattr(harness, "start_context", lambda bare: started.append(start_context(bare)) or started[-1])
    assert run_ranks(parent, 1) == [(os.getpid(), False)]  # this process' own child, not a server's
    assert [context.get_start_method() for context in started] == ["spawn"]


def test_without_cuda_ranks_come_from_one_server():
    servers = {run_ranks(parent, 1)[0] for _ in range(2)}
    assert len(servers) == 1 and servers != {(os.getpid(), False)}
    assert multiprocessing.get_start_method(allow_none=True) != "forkserver"  # the choice is the harness' alone
