"""Ends a rank that makes no progress, and shows where every thread of it stands.

A rank that waits for ever in a collective holds the whole job. All ranks wait then, so each of them writes its stacks:
the one that stands elsewhere is the culprit. Both timers run in the system, not in Python, which may be what hangs.
"""

import faulthandler
import signal

_STDERR = 2  # the file itself, whatever stands in for sys.stderr
_GRACE_S = 15.0
"""Ranks begin a step at different moments, and a launcher ends all of them when the first one ends."""


class HangDetection:
    """A deadline that every step moves on. Takes SIGALRM for itself."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def step_begins(self) -> None:
        """The next step boundary has to come in time, or stacks go to standard error and SIGALRM ends the process."""
        faulthandler.dump_traceback_later(self.seconds, file=_STDERR)
        signal.setitimer(signal.ITIMER_REAL, self.seconds + _GRACE_S)

    def ended(self) -> None:
        """No deadline any more."""
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
