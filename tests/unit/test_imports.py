"""Imports go one way: tools -> megatron_focus -> data_pipeline; the release imports neither."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "data_pipeline": {"megatron", "megatron_focus", "tools"},
    "megatron_focus": {"tools"},
    "megatron_focus/release": {"megatron", "data_pipeline", "megatron_focus", "tools"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_import_direction(package):
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & FORBIDDEN[package], path


def test_the_cpu_backend_is_imported_in_one_place():
    users = [
        p
        for p in (ROOT / "megatron_focus").rglob("*.py")
        if "cpu_backend" in p.read_text() and p.name != "cpu_backend.py"
    ]
    assert [p.name for p in users] == ["initialize.py"]
