"""Ends a rank that makes no progress, and shows where every thread of it stands.

A rank that waits for ever in a collective holds the whole job. All ranks wait then, so each of them writes its stacks:
the one that stands elsewhere is the culprit. The timer is a thread in C: it runs while Python waits.
"""

import faulthandler

_STDERR = 2  # the file itself, whatever stands in for sys.stderr


class HangDetection:
    """A deadline that every step moves on."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes

    def step_begins(self) -> None:
        """The next step boundary has to come in time, or stacks go to standard error and the process exits with 1."""
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=_STDERR)

    def ended(self) -> None:
        """No deadline any more."""
        faulthandler.cancel_dump_traceback_later()
