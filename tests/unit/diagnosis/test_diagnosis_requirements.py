"""Pins are read from the packaging and compared as pip compares them."""

import ast
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement as Reference
from packaging.specifiers import SpecifierSet
from setuptools.dist import Distribution

from megatron_focus.diagnosis import requirements
from megatron_focus.diagnosis.requirements import fits, for_python, normal, parse, project_requirements

ROOT = Path(__file__).parents[3]


def _core_of_setup() -> list[str]:
    tree = ast.parse((ROOT / "setup.py").read_text())
    return next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "CORE")


def test_pins_are_those_that_setuptools_sees(monkeypatch):
    seen: dict = {}
    monkeypatch.setattr(Distribution, "parse_command_line", lambda self: seen.update(vars(self)) or False)
    monkeypatch.setattr(sys, "argv", ["setup.py", "--name"])
    monkeypatch.chdir(ROOT)
    source = (ROOT / "setup.py").read_text()
    exec(compile(source, "setup.py", "exec"), {"__name__": "__main__", "__file__": str(ROOT / "setup.py")})
    pairs = [(None, line) for line in seen["install_requires"]]
    pairs += [(extra, line) for extra, lines in seen["extras_require"].items() for line in lines]
    expected = {
        (extra, normal(wanted.name), frozenset(wanted.extras), wanted.specifier)
        for extra, wanted in ((extra, Reference(line)) for extra, line in pairs)
        if wanted.marker is None or wanted.marker.evaluate()
    }
    assert len(expected) > 20
    assert expected == {
        (own.extra, own.name, frozenset(filter(None, own.parts.strip("[]").split(","))), SpecifierSet(own.versions))
        for own in project_requirements()
    }


@pytest.mark.parametrize("versions", ["", "==2.13.0", "==2.13", ">=2.11,<2.14", "!=2.13", ">2.12.9", "<=2.13.0"])
@pytest.mark.parametrize("version", ["2.13.0", "2.13.0+cpu", "2.13", "2.14.0", "2.11", "2.9.1", "3", "2.13.1"])
def test_versions_compare_as_packaging_does(version, versions):
    # Local versions (+cpu) are not compared with ">" and "!=" by the numbers alone there; the project uses neither.
    if "+" not in version or versions.startswith(("==", ">=", "<", "")):
        assert fits(version, versions) == SpecifierSet(versions).contains(version)


def test_metadata_where_there_is_no_checkout(monkeypatch, tmp_path):
    lines = ["torch<2.14,>=2.11", "transformer-engine[pytorch]==2.11.0; extra == 'gpu'"]
    monkeypatch.setattr(requirements.importlib.metadata, "requires", {"megatron-focus": lines}.get)
    torch, engine = project_requirements(tmp_path)
    assert (torch.name, torch.versions, torch.extra) == ("torch", "<2.14,>=2.11", None)
    assert (engine.line, engine.extra) == ("transformer-engine[pytorch]==2.11.0", "gpu")


@pytest.mark.parametrize("version", ["3.11.7", "3.12.0", "3.13.1", "4.0.0"])
def test_each_python_has_its_own_megatron_core(version):
    lines = [line for line in _core_of_setup() if line.startswith("megatron-core")]
    assert len(lines) == 2
    taken = [line for line in lines if for_python(line, version)]
    python = {"python_version": ".".join(version.split(".")[:2])}
    assert taken == [line for line in lines if Reference(line).marker.evaluate(python)]
    assert len(taken) == 1


@pytest.mark.parametrize("marker", ["", "; extra == 'gpu'", "; python_version >= '3.12' and extra == 'gpu'"])
def test_markers_are_read_in_metadata_too(marker):
    assert [for_python(f"numpy>=2{marker}", python) for python in ("3.11.9", "3.12.1")] == ["3.12" not in marker, True]


def test_what_cannot_be_read():
    with pytest.raises(ValueError, match="not a requirement"):
        parse("!!")
    with pytest.raises(ValueError, match="~=2"):
        fits("2.0", "~=2.0")
