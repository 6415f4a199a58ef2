"""The cluster, and a run that takes seconds a step on eight ranks of two cores."""

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig
from megatron_focus.config.loading import dump_config
from tests.distributed.workers import configure
from tests.functional.conftest import dataset  # noqa: F401  (a fixture)
from tests.slurm.cluster import CannotRun, Cluster, Job
from tests.slurm.fault_table import FaultTable
from tests.tiny import tiny_model

EIGHT = ("--ntasks-per-node=1",)
"""Eight nodes, as the script says, with one rank each: there are no GPUs to take the number from."""
LONG = ("training.train_iters=160", "checkpoint.save_interval=20")
_TABLE = pytest.StashKey[FaultTable]()


@pytest.fixture(scope="session")
def small_disk(tmp_path_factory):
    """A folder; where one can be mounted, a small file system. Nodes see those that were there before they were."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount") is not None and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def mounted_disk(small_disk):
    """The small file system; skips where none can be mounted, or a test would fill the machine's own disk."""
    if not small_disk.is_mount():
        pytest.skip("no file system can be mounted here")
    return small_disk


def fill(folder: Path) -> Path:
    """Write to a file system until not a byte is free; returns the file that fills it."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    return filler


@pytest.fixture(scope="session")
def cluster(small_disk):
    """Eight nodes; skips where they cannot be had."""
    # The names of Unix sockets are short, so it does not lie in pytest's folders.
    state = Path(tempfile.mkdtemp(prefix="mf-slurm-", dir="/run" if Path("/run").is_dir() else None))
    try:
        nodes = Cluster(state, 8)
    except CannotRun as reason:
        shutil.rmtree(state)
        pytest.skip(f"no Slurm cluster on this machine: {reason}")
    yield nodes
    nodes.down()
    shutil.rmtree(state)


@pytest.fixture(scope="session")
def config(dataset, tmp_path_factory):  # noqa: F811
    """File of a configuration with 40 short steps for eight ranks, and a checkpoint after every 10."""
    model = tiny_model(num_layers=4, vocab_size=320)
    model.text_sampler.layer_range = [0, 3]
    model.text_sampler.layer = 2
    run = configure(
        model,
        None,
        {"train_iters": 40, "global_batch_size": 8},
        **{"lr": 1e-3, "adam_eps": 1e-8, "lr_decay_style": "cosine"},
    )
    run.data = DataConfig(
        path=str(dataset / "shards"), tokenizer=str(dataset / "tokenizer"), max_sequence_length=800, num_workers=0
    )
    run.checkpoint.save, run.checkpoint.save_interval = "checkpoints", 10
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(dump_config(run))
    return file


@pytest.fixture(scope="session")
def undisturbed(cluster, config, tmp_path_factory) -> Job:
    """The same run without a fault, and with the check of the nodes before it."""
    job = cluster.submit(
        tmp_path_factory.mktemp("undisturbed"), "slurm/finetune_8node.sh", str(config), options=EIGHT, PREFLIGHT="1"
    )
    assert job.wait() == "COMPLETED", job.log
    return job


@pytest.fixture(scope="session")
def undisturbed_long(cluster, config, tmp_path_factory) -> Job:
    """A run of 160 steps, for what Slurm notices after half a minute; ``LONG`` are its settings."""
    folder = tmp_path_factory.mktemp("undisturbed-long")
    job = cluster.submit(folder, "slurm/finetune_8node.sh", str(config), *LONG, options=EIGHT)
    assert job.wait(within=900) == "COMPLETED", job.log
    return job


@pytest.fixture(scope="session")
def fault_table(request) -> FaultTable:
    """Collects what the tests of faults saw, for the end of pytest's report."""
    return request.config.stash.setdefault(_TABLE, FaultTable())


def pytest_terminal_summary(terminalreporter, config):
    """Print the table of faults, if there is one."""
    if table := config.stash.get(_TABLE, None):
        terminalreporter.section("faults")
        terminalreporter.write(table.markdown())


def pytest_collection_modifyitems(config, items):
    """Faults take half an hour in all, so they run only when they are asked for."""
    if "slurm_faults" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("slurm_faults"):
                item.add_marker(pytest.mark.skip(reason="minutes each: pytest -m slurm_faults tests/slurm"))
