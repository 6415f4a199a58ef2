"""What the project pins, read from its own packaging, and whether a version fits. Standard library alone."""

import ast
import importlib.metadata
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROJECT = "megatron-focus"
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")
_PYTHON = re.compile(r"""python_version\s*([<>=!]+)\s*["']([0-9.]+)["']""")
_COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    "==": lambda found, wanted: found == wanted,
    "!=": lambda found, wanted: found != wanted,
    ">=": lambda found, wanted: found >= wanted,
    "<=": lambda found, wanted: found <= wanted,
    ">": lambda found, wanted: found > wanted,
    "<": lambda found, wanted: found < wanted,
}


@dataclass(frozen=True)
class Requirement:
    """One requirement of the project."""

    name: str
    """Normalised name of the distribution: lower case, words joined by ``-``."""
    parts: str
    """Its own extras as written, e.g. ``[pytorch]``."""
    versions: str
    """What is wanted, e.g. ``>=2.11,<2.14``; empty: any."""
    extra: str | None
    """Extra of this project that asks for it; None: always needed."""

    @property
    def line(self) -> str:
        """As pip takes it."""
        return f"{self.name}{self.parts}{self.versions}"


def project_requirements(root: Path = Path(__file__).parents[2]) -> list[Requirement]:
    """The project's requirements under this Python: of ``setup.py`` in a checkout, else of the installed metadata.

    A checkout comes first, because metadata of an editable installation may be older than the files that run.

    Raises:
        ValueError: there is neither.
    """
    if (root / "setup.py").is_file():
        return _of_setup((root / "setup.py").read_text(encoding="utf-8"))
    try:
        lines = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(f"{PROJECT} is not installed, and {root} has no setup.py: its pins are unknown") from error
    return [parse(line) for line in lines if for_python(line, platform.python_version())]


def for_python(line: str, version: str) -> bool:
    """Whether a requirement's ``python_version`` marker, if it has one, takes this version of Python."""
    major_minor = ".".join(version.split(".")[:2])
    return all(fits(major_minor, operator + wanted) for operator, wanted in _PYTHON.findall(line.partition(";")[2]))


def parse(line: str) -> Requirement:
    """One line of the metadata, e.g. ``torch==2.13.0; extra == "cpu"``.

    Raises:
        ValueError: it is none.
    """
    match = _REQUIREMENT.fullmatch(line)
    if match is None:
        raise ValueError(f"{line!r} is not a requirement")
    name, parts, versions, marker = match.groups()
    extra = _EXTRA.search(marker or "")
    return Requirement(normal(name), parts or "", versions.replace(" ", ""), extra[1] if extra else None)


def normal(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def fits(version: str, versions: str) -> bool:
    """Whether ``version`` is among ``versions``, by the numbers of the release (``2.13.0+cpu`` is 2.13.0).

    Raises:
        ValueError: ``versions`` has an operator other than ``==``, ``!=``, ``>=``, ``<=``, ``>``, ``<``.
    """
    for clause in filter(None, versions.split(",")):
        match = re.fullmatch(r"(==|!=|>=|<=|>|<)([0-9][^*]*)", clause.strip())
        if match is None:
            raise ValueError(f"{clause!r} cannot be compared")
        found, wanted = _release(version), _release(match[2])
        length = max(len(found), len(wanted))  # 2.13 and 2.13.0 are the same
        if not _COMPARE[match[1]](_padded(found, length), _padded(wanted, length)):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def _padded(release: tuple[int, ...], length: int) -> tuple[int, ...]:
    return release + (0,) * (length - len(release))


def _of_setup(source: str) -> list[Requirement]:
    """``CORE`` and ``EXTRAS`` of setup.py, without running it."""
    lists = {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)
        if target.id in ("CORE", "EXTRAS")
    }
    lines = [*lists["CORE"], *(f"{r}; extra == '{extra}'" for extra, rs in lists["EXTRAS"].items() for r in rs)]
    return [parse(line) for line in lines if for_python(line, platform.python_version())]
