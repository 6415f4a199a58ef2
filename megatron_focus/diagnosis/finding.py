"""One thing that was found."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is wrong, or worth knowing, and how to put it right."""

    about: str
    """A configuration key, a package or a part of the machine."""
    message: str
    fix: str | None = None
    """The line to type, where there is one."""
    is_problem: bool = True
    """False: worth knowing, nothing depends on it."""
    may_pass: bool = False
    """Storage that does not answer, say: a later look may find it in order."""
