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
    if isinstance(sys.stdout, io.TextIOWrapper):  # None where the program was started without one
        sys.stdout = _ending_with_its_reader(sys.stdout)
    try:
        code = main()
        _flush()
    except SystemExit:
        _flush()
        raise
    end(code)


def _ending_with_its_reader(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    raw = _StandardOutput(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=bool(stream.line_buffering),
        write_through=bool(stream.write_through),
    )


def _flush() -> None:
    """While the end of the program can still say that nobody reads."""
    for stream in (sys.stdout, sys.stderr):
        print(end="", file=stream, flush=True)
