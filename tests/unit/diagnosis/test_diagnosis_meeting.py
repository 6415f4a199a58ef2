"""The meeting and the shared folder, by one process that is rank 0 or waits for it."""

from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from megatron_focus.diagnosis import meeting as meeting_module
from megatron_focus.diagnosis.launch import Launch
from megatron_focus.diagnosis.meeting import Meeting
from megatron_focus.diagnosis.shared_folder import check_shared_folder


def launch(rank, world_size, port):
    place = {"master_addr": "localhost", "master_port": port, "node": f"n{rank}", "allocated": ()}
    return Launch(rank=rank, world_size=world_size, local_rank=0, has_agent_store=True, **place)


@pytest.fixture
def store():
    return TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))


def test_rank_0_may_come_late_and_then_wait_for_others(store, monkeypatch):
    waited = []
    meeting = Meeting(launch(1, 2, store.port), 40.0)
    store.set("shared/1", '{"value": 7}')
    monkeypatch.setattr(meeting, "store", _Recorder(meeting.store, waited))
    assert meeting.share() == 7
    (seconds,) = waited
    # Rank 0 arrives after 39 s and waits 40 s for the others; it has to be the one that gives up first.
    assert seconds > 39 + 40 + meeting_module._POLL_S


class _Recorder:
    def __init__(self, store, waited):
        self.store, self.waited = store, waited

    def wait(self, keys, timeout):
        self.waited.append(timeout.total_seconds())
        self.store.wait(keys, timeout)

    def get(self, key):
        return self.store.get(key)


def test_the_folder_stays_and_the_file_goes(store, tmp_path):
    folder = tmp_path / "runs" / "a"
    assert check_shared_folder(str(folder), Meeting(launch(0, 1, store.port), 10.0)) is None
    assert list(folder.iterdir()) == []


def test_a_file_that_cannot_be_removed_stops_nothing(store, tmp_path, monkeypatch):
    def refuse(path, missing_ok=False):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert check_shared_folder(str(tmp_path), Meeting(launch(0, 1, store.port), 10.0)) is None
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("preflight-")
