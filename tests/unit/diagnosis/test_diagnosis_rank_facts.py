"""What a rank says of its GPU, with stand-ins for torch's view of the GPUs and for nvidia-smi."""

from types import SimpleNamespace

import pytest
import torch

from megatron_focus.diagnosis import rank_facts
from megatron_focus.diagnosis.gpus import Gpu
from megatron_focus.diagnosis.rank_facts import RankFacts


@pytest.fixture
def taken(monkeypatch):
    """One GPU is visible; the list has the devices that were set."""
    devices: list[int] = []
    properties = SimpleNamespace(name="H100", total_memory=80 * 2**30, uuid="aa-1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    return devices


def look(monkeypatch, query, local_rank=0):
    monkeypatch.setattr(rank_facts, "query_gpus", query)
    facts = RankFacts("n0", 3, local_rank)
    rank_facts._gpu(facts)
    return facts


def gpu(**health):
    plain = {"index": 0, "name": "H100", "memory_mib": 81920, "used_mib": 0, "driver": "580", "compute_capability": "9"}
    return Gpu(**plain, uuid="GPU-aa-1", health=health)


def test_one_visible_gpu_for_each_rank(monkeypatch, taken):
    """As with srun --gpus-per-task=1."""
    facts = look(monkeypatch, lambda: [gpu()], local_rank=3)
    assert (facts.problems, facts.warnings, taken) == ([], [], [0])
    assert facts.gpu == {"name": "H100", "GiB": "80", "uuid": "aa-1"}


def test_the_gpu_is_taken_where_nvidia_smi_fails(monkeypatch, taken):
    def query():
        raise OSError("nvidia-smi fails: no answer in 60 s")

    facts = look(monkeypatch, query)
    assert facts.problems == ["nvidia-smi fails: no answer in 60 s"]
    assert (facts.gpu["uuid"], taken) == ("aa-1", [0])


def test_what_may_have_passed_is_a_warning(monkeypatch, taken):
    health = {"ecc.errors.uncorrected.volatile.total": "1", "remapped_rows.pending": "Yes"}
    facts = look(monkeypatch, lambda: [gpu(**health)])
    assert facts.problems == ["GPU 0: a memory repair waits for a reset of the GPU"]
    assert facts.warnings == ["GPU 0: 1 uncorrected memory (ECC) errors since the driver was loaded"]
