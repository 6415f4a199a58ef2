import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from data_pipeline.loading import reading_processes
from data_pipeline.loading.reading_processes import ReadingProcesses
from tests.processes import all_end
from tests.unit.data_pipeline.loading.loader_steps import same_steps, steps


def test_trainer_random_state_is_left_alone(make):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    steps(make(num_workers=1), 1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("workers", "expected"), [(1, 8), (6, 12)])
def test_what_is_read_ahead(make, workers, expected):
    """The rows of the next step, or two a worker, whatever the number of steps planned."""
    loader = make(num_workers=workers, prefetch_steps=20, batch=24, packing_estimate="baseline")
    for _ in range(3):
        assert len(loader.next_step().rows) == 8
        assert sum(len(step.pending) for step in loader._steps) == expected
        loader.step_done(400, 1000)


def test_tensors_do_not_keep_file_descriptors_open(make):
    loader = make(num_workers=1, batch=24)
    loader.next_step()
    loader.step_done(400, 1000)
    before = len(os.listdir("/proc/self/fd"))
    kept = [batch for batch, _ in steps(loader, 6)]
    assert len(os.listdir("/proc/self/fd")) <= before + 8 < before + sum(len(batch.rows) for batch in kept)


def test_workers_leave_signals_to_the_trainer(make):
    """A scheduler's warning goes to every process of a job; the trainer still gets the batches it asks for."""
    loader = make(num_workers=2)
    got = steps(loader, 1)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        # From another process, as the scheduler's are.
        subprocess.run(["kill", "-USR1", str(worker.pid)], check=True)
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        subprocess.run(["kill", "-INT", str(worker.pid)], check=True)
    got += steps(loader, 8)
    assert same_steps(got, steps(make(), 9))
    loader.close()
    assert not any(worker.is_alive() for worker in workers)


def test_trainer_can_end_a_worker(make):
    """What multiprocessing does at exit with workers that are left over, for instance after an exception."""
    steps(make(num_workers=1), 1)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    # The pool notices as well and may be the first to ask for the exit code, which is given once; both then have it.
    deadline = time.monotonic() + 20
    while worker.exitcode is None and time.monotonic() < deadline:
        worker.join(timeout=0.1)
    assert worker.exitcode == 0


NAMED = r"a reading process died \(killed by SIGKILL while it read {}\); if the system .* use fewer data\.num_workers"
S9 = r".*/shards/llava-000001\.tar: sample 's9' of llava"


@pytest.fixture
def make_processes(make):
    """Reading processes with a reader in which something happens at samples 3 and 9."""
    made = []

    def call(happening, moment="_read", num_workers=2, **options):
        reader = make().reader
        original = getattr(reader, moment)

        def happens(what, *rest):
            sample = {"0 of s3": 3, "0 of s9": 9}.get(what, what)
            if sample in (3, 9):
                happening(sample)
            return original(what, *rest)

        setattr(reader, moment, happens)
        made.append(ReadingProcesses(reader, num_workers, **{"decodes": True, "pin_memory": False} | options))
        return made[-1]

    yield call
    for processes in made:
        processes.close()


def kill_at_9(sample):
    """Sample 3 is still being read then."""
    time.sleep(60) if sample == 3 else os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("options", [{}, {"decodes": False}, {"moment": "_tiles"}, {"pin_memory": True}])
def test_a_killed_worker_names_what_it_read(make_processes, options):
    """Whether it reads or decodes, for DALI or with pinned memory; not what another one was at meanwhile."""
    processes = make_processes(kill_at_9, **options)
    rows = [processes.submit(row) for row in ([2, 3], [8, 9, 10])]
    for row in reversed(rows):
        with pytest.raises(RuntimeError, match=NAMED.format(S9)):
            row.result()
    with pytest.raises(RuntimeError, match=NAMED.format(S9)):
        processes.submit([0])


def test_a_worker_killed_while_it_waits(make):
    """Whether the loader finds out when it asks for a row or when it has one."""
    loader = make(num_workers=1)
    steps(loader, 1)
    (worker,) = multiprocessing.active_children()
    time.sleep(0.5)  # what it reads ahead is read
    worker.kill()
    with pytest.raises(RuntimeError, match=NAMED.format("(nothing|.*/shards/.*: sample '.*' of llava)")):
        steps(loader, 20)


def test_workers_that_die_at_their_start(make_processes, monkeypatch):
    monkeypatch.setattr(reading_processes, "_leave_signals_to", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError, match=r"a reading process died as it started; .* use fewer data\.num_workers"):
        make_processes(kill_at_9)


def test_a_worker_that_exits_is_named_with_its_code(make_processes):
    processes = make_processes(lambda _: os._exit(3))
    with pytest.raises(RuntimeError, match=rf"a reading process died \(exit code 3 while it read {S9}\)"):
        processes.submit([9]).result()


def test_workers_end_with_a_killed_trainer(config, tmp_path):
    """After kill -9 nobody tells them."""
    script = tmp_path / "trainer.py"
    script.write_text(
        "import multiprocessing, os, signal\n"
        "from data_pipeline.config import DataConfig, ImageGeometry\n"
        "from data_pipeline.loading.loader import StepLoader\n"
        f"loader = StepLoader(DataConfig(path={config.path!r}, tokenizer={config.tokenizer!r}, num_workers=2),\n"
        "    ImageGeometry(), global_batch_size=2, data_parallel_rank=0, data_parallel_size=1)\n"
        "loader.next_step()\n"
        "print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    workers = [int(pid) for pid in ended.stdout.split()]
    assert len(workers) == 2, ended.stderr
    assert all_end(workers, within=15)
