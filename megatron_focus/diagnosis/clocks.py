"""How far each node's clock is from rank 0's."""

import time

from megatron_focus.diagnosis.meeting import Meeting

_ROUNDS = 3


def clock_offset(meeting: Meeting) -> float:
    """Seconds that this clock is ahead of rank 0's, and the time that a message takes (collective over the meeting).

    A message always takes some time, so the least of several rounds is the best.
    """
    offsets = []
    for number in range(_ROUNDS):
        meeting.gather(f"clock {number}", None)  # all are about to wait
        sent = meeting.share(time.time() if meeting.launch.rank == 0 else None)
        offsets.append(time.time() - sent)
    return min(offsets) if meeting.launch.rank else 0.0
