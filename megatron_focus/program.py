"""How every program of this project begins: its reader may leave, and libraries do not talk past its user."""

import io
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

_NOISE = (
    # Megatron's, of packages: tools/doctor.py says what is missing and what for.
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    # Megatron's and torch's, about their own code.
    "full scope is deprecated",
    r"`torch\.distributed\.\w+` is deprecated",
    # torch's, where a checkpoint is written without a process group, as an import does.
    r"torch\.distributed is disabled, unavailable or uninitialized",
    # torch's, where Megatron's finalisation asks for a gradient that may be absent.
    r"The \.grad attribute of a Tensor that is not a leaf",
)
"""How the warnings of libraries begin that ask nothing of a user."""


class _StandardOutput(io.FileIO):
    """Ends the program, with the status that SIGPIPE would give, when its reader has left (``| head``).

    Ended here, where it is known which pipe it is: any other broken pipe is an error of its own.
    """

    _left = False

    def write(self, data: Any, /) -> int:
        """Write, or end the program; what is flushed while it ends is dropped."""
        if not self._left:
            try:
                return super().write(data)
            except BrokenPipeError:
                self._left = True
                raise SystemExit(128 + signal.SIGPIPE) from None
        return len(data)


def run_program(main: Callable[[], int], end: Callable[[int], NoReturn] = sys.exit) -> NoReturn:
    """What a file does that is run as a program, before it imports libraries.

    Args:
        main: the program; gives its exit code.
        end: ends the process.
    """
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    before = sys.stdout
    assert isinstance(before, io.TextIOWrapper), "nobody has replaced it yet"
    raw = _StandardOutput(before.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        raw if before.write_through else io.BufferedWriter(raw),
        encoding=before.encoding,
        errors=before.errors,
        line_buffering=bool(before.line_buffering),
        write_through=bool(before.write_through),
    )
    try:
        code = main()
        sys.stdout.flush()
    except SystemExit:
        sys.stdout.flush()  # while the end of the program can still say that nobody read it
        raise
    sys.stderr.flush()
    end(code)
