"""Whether processes that nobody waits for have ended."""

import time
from collections.abc import Iterable
from pathlib import Path


def all_end(pids: Iterable[int], within: float) -> bool:
    """Wait until every process has ended; False if one still runs after ``within`` seconds."""
    left, deadline = list(pids), time.monotonic() + within
    while left := [pid for pid in left if _runs(pid)]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _runs(pid: int) -> bool:
    try:
        # A zombie has ended.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False
