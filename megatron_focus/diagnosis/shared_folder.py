"""Whether all nodes see the same folder, with files of their own in it that are gone at the end; the folder stays."""

import contextlib
import os
import secrets
import time
from pathlib import Path

from megatron_focus.diagnosis.machine import NO_ROOM
from megatron_focus.diagnosis.meeting import Meeting

_PATIENCE_S = 20.0  # network file systems may show a new file late
_POLL_S = 0.2


def check_shared_folder(folder: str, meeting: Meeting) -> str | None:
    """Rank 0 writes a random token, one process of each node reads it (collective over the meeting).

    Nothing is found out on a full disk; what that means for the run is for ``inspect_run_files`` to say.

    Returns:
        what is wrong as this rank sees it; None if all is well, or if another process speaks for this node.
    """
    rank_0, problem = meeting.launch.rank == 0, None
    path = Path(folder) / f"preflight-{secrets.token_hex(8)}"
    token = secrets.token_hex(16)
    if rank_0:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # the run needs it as well, so it is not removed
            _write(path, token)
        except OSError as error:
            if error.errno not in NO_ROOM:
                problem = f"checkpoint.save: {path.parent} cannot be written ({error.strerror})"
            token = ""
    try:
        place, expected = meeting.share([str(path), token])
        if expected and meeting.launch.speaks_for_node and not rank_0:
            problem = _look(Path(place), expected)
        meeting.gather("view of the shared folder", None)  # all have looked
    finally:
        if rank_0:
            with contextlib.suppress(OSError):  # a small file that stays is no reason to stop a job
                path.unlink(missing_ok=True)
    return problem


def _look(path: Path, token: str) -> str | None:
    """Read the token and write a file beside it."""
    deadline = time.monotonic() + _PATIENCE_S
    while (found := _read(path)) != token:
        if time.monotonic() > deadline:
            what = "is not there" if found is None else "has other contents"
            return (
                f"checkpoint.save: {path.parent} is not the folder that rank 0 sees: {path.name}, written there, {what}"
            )
        time.sleep(_POLL_S)
    own = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
    try:
        _write(own, token)
    except OSError as error:
        if error.errno not in NO_ROOM:
            return f"checkpoint.save: {path.parent} can be read, but not written ({error.strerror})"
    finally:
        with contextlib.suppress(OSError):
            own.unlink(missing_ok=True)
    return None


def _read(path: Path) -> str | None:
    try:
        os.listdir(path.parent)  # makes NFS look again
        return path.read_text()
    except OSError:
        return None


def _write(path: Path, token: str) -> None:
    with path.open("w") as file:
        file.write(token)
        file.flush()
        os.fsync(file.fileno())
