"""Where the ranks meet before any collective: a key-value store on rank 0, so that those who are there can say so.

A collective hangs when one rank is missing; a store does not.
"""

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch.distributed import DistNetworkError, DistStoreError, TCPStore

from megatron_focus.diagnosis.launch import Launch
from megatron_focus.diagnosis.verdict import ranges

_POLL_S = 0.05
# A rank waits longer for rank 0 than rank 0 for the ranks, so that rank 0 is the one who says why: rank 0 may arrive a
# whole timeout after it, and then wait a whole timeout for others.
_ARRIVALS = 2
_GRACE_S = 30.0
_FAREWELL_S = 10.0


class MeetingError(RuntimeError):
    """The ranks did not come together; the message names those who are missing."""


class MeetingEnded(MeetingError):
    """Rank 0 has ended the meeting; it says why."""


class Meeting:
    """All ranks of a job, once ``wait_for_all`` has returned.

    Args:
        launch: this process.
        timeout_s: seconds that the ranks have to arrive.

    Raises:
        MeetingError: rank 0 does not answer, or cannot listen at its port.
    """

    def __init__(self, launch: Launch, timeout_s: float) -> None:
        self.launch, self.timeout_s, self._shared = launch, timeout_s, 0
        try:
            self.store = TCPStore(
                launch.master_addr,
                launch.master_port,
                launch.world_size,
                is_master=launch.rank == 0 and not launch.has_agent_store,
                timeout=timedelta(seconds=timeout_s),
                wait_for_workers=False,
            )
        except (DistNetworkError, DistStoreError) as error:
            place = f"MASTER_ADDR:MASTER_PORT {launch.master_addr}:{launch.master_port}"
            if launch.rank == 0:
                raise MeetingError(f"{launch.node}: rank 0 cannot listen at {place}: {_first_line(error)}") from error
            raise MeetingError(
                f"{launch.node}: rank {launch.rank} got no answer from rank 0 at {place} in {timeout_s:.0f} s: its "
                "node is down, cut off, or its process has not started"
            ) from error
        self._put("here", launch.node)

    def wait_for_all(self) -> None:
        """Wait until every rank is here.

        Raises:
            MeetingError: on rank 0: some are missing; names them.
            MeetingEnded: on the others: rank 0 has ended the meeting.
        """
        if self.launch.rank == 0:
            self._wait_for("here", "did not arrive")
        self.share(None)

    def gather(self, name: str, value: Any) -> list[Any] | None:
        """Plain values of all ranks, on rank 0; None on the others.

        Raises:
            MeetingError: on rank 0: a rank has not sent its value in time; names it.
        """
        self._put(name, value)
        if self.launch.rank != 0:
            return None
        self._wait_for(name, f"arrived, but did not send their {name}")
        return self.received(name, range(self.launch.world_size))

    def share(self, value: Any = None) -> Any:
        """Rank 0's ``value``, on every rank. All ranks share the same number of times.

        Raises:
            MeetingError: rank 0 has died or does not answer.
            MeetingEnded: rank 0 has ended the meeting.
        """
        self._shared += 1
        if self.launch.rank == 0:
            self.store.set(f"shared/{self._shared}", json.dumps({"value": value}))
            return value
        key = f"shared/{self._shared}"
        try:
            self.store.wait([key], timedelta(seconds=_ARRIVALS * self.timeout_s + _GRACE_S))
            answer = json.loads(self.store.get(key))
        except (DistNetworkError, DistStoreError) as error:
            lost = f"{self.launch.node}: rank {self.launch.rank} lost rank 0: {_first_line(error)}"
            raise MeetingError(lost) from error
        if "value" not in answer:
            raise MeetingEnded(f"{self.launch.node}: rank 0 has ended the meeting")
        return answer["value"]

    def end(self) -> None:
        """On rank 0, after an error: the others stop waiting."""
        if self.launch.rank == 0:
            self.store.set(f"shared/{self._shared + 1}", json.dumps({}))

    def received(self, name: str, ranks: Any) -> list[Any]:
        """Values that these ranks have sent."""
        return [json.loads(self.store.get(f"{name}/{rank}")) for rank in ranks]

    def leave(self) -> None:
        """Part; rank 0, who holds the store, waits a little for those who are here."""
        try:
            self.store.add("left", 1)
            if self.launch.rank != 0:
                return
            deadline = time.monotonic() + _FAREWELL_S
            here = self.store.add("count/here", 0)
            while self.store.add("left", 0) < here and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        except DistNetworkError:  # rank 0 has gone, with or without a word
            return

    def _put(self, name: str, value: Any) -> None:
        self.store.set(f"{name}/{self.launch.rank}", json.dumps(value))
        self.store.add(f"count/{name}", 1)

    def _wait_for(self, name: str, what: str) -> None:
        deadline = time.monotonic() + self.timeout_s
        while self.store.add(f"count/{name}", 0) < self.launch.world_size:
            if time.monotonic() > deadline:
                here = [r for r in range(self.launch.world_size) if self.store.check([f"{name}/{r}"])]
                nodes = dict(zip(here, self.received("here", here), strict=True))
                raise MeetingError(describe_missing(self.launch, nodes, what, self.timeout_s))
            time.sleep(_POLL_S)


def describe_missing(launch: Launch, nodes: Mapping[int, str], what: str, timeout_s: float) -> str:
    """Who is missing, by node where that can be known.

    Args:
        launch: any process of the job.
        nodes: rank -> node of those who are there.
        what: what the missing ones did not do.
        timeout_s: in how many seconds.
    """
    missing = [rank for rank in range(launch.world_size) if rank not in nodes]
    ranks = f"{'rank' if len(missing) == 1 else 'ranks'} {ranges(missing)} {what} in {timeout_s:.0f} s"
    if absent := [node for node in launch.allocated if node not in nodes.values()]:
        return f"{', '.join(absent)}: nothing heard from there; {ranks}"
    per_node = {node: sum(other == node for other in nodes.values()) for node in dict.fromkeys(nodes.values())}
    fewest = [node for node, count in per_node.items() if count < max(per_node.values())]
    if fewest:
        counts = ", ".join(f"{per_node[node]} of {max(per_node.values())} processes" for node in fewest[:1])
        return f"{', '.join(fewest)}: {counts} there; {ranks}"
    return f"{ranks}; there are {', '.join(per_node)}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
