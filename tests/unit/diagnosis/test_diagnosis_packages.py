"""Missing and broken packages are told apart, and so are the two projects that are called apex."""

import importlib
import sys

import pytest

from megatron_focus.diagnosis.apex import inspect_apex
from megatron_focus.diagnosis.components import COMPONENTS, DALI, built_for, install_line
from megatron_focus.diagnosis.packages import inspect_package
from megatron_focus.diagnosis.requirements import parse


@pytest.fixture
def site(tmp_path, monkeypatch):
    """``install(name, version, files)`` puts a distribution where this and new interpreters find it."""

    def install(name, version, files, summary="made up"):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n")
        importlib.invalidate_caches()

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield install
    for name in [name for name in sys.modules if name.split(".")[0] == "apex"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("code", "state", "error"),
    [
        ("", "ok", None),
        ("import ctypes; ctypes.CDLL('libnowhere.so.12')", "broken", "libnowhere.so.12: cannot open shared object"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "broken", "ended by signal 11"),
    ],
)
def test_imports_happen_elsewhere(site, code, state, error):
    site("made_up_package", "1.5", {"made_up_package/__init__.py": code})
    found = inspect_package("made_up_package", ">=1.2")
    assert (found.version, found.state) == ("1.5", state)
    assert found.error is None if error is None else error in found.error
    assert "made_up_package" not in sys.modules


def test_another_version_and_none(site):
    site("made_up_package", "1.5", {"made_up_package/__init__.py": ""})
    assert inspect_package("made_up_package", "==1.4").state == "other version"
    assert inspect_package("nobody_made_this_up", "==1.4").state == "missing"


def test_apex_of_pypi_is_another_project(site):
    # Its files, from the source distribution 0.9.10.dev0.
    files = ["__init__.py", "forms.py", "models.py", "ext/__init__.py", "lib/__init__.py"]
    summary = "Pyramid toolkit to add Velruse, Flash Messages,CSRF, ReCaptcha and Sessions"
    code = "raise AssertionError('nothing of it may run')"
    site("apex", "0.9.10.dev0", {f"apex/{name}": code for name in files}, summary)
    package, line = inspect_apex()
    assert (package.version, package.state) == ("0.9.10.dev0", "broken")
    assert "another project" in package.error
    assert "Pyramid" in package.error
    assert line.startswith("python -m pip uninstall -y apex && git clone https://github.com/NVIDIA/apex")


def test_apex_of_nvidia_without_its_extensions(site):
    site("apex", "0.1", {"apex/__init__.py": "", "apex/optimizers/__init__.py": ""})
    package, line = inspect_apex()
    assert (package.state, package.error) == ("broken", "built without its CUDA extensions, so it has no fused Adam")
    assert "uninstall" not in line


def test_apex_of_nvidia(site):
    site("apex", "0.1", {"apex/__init__.py": "", "apex/optimizers/__init__.py": "FusedAdam = 1", "amp_C.py": ""})
    assert inspect_apex()[0].state == "ok"


def test_no_apex(site):
    assert inspect_apex()[0].state == "missing"


@pytest.mark.parametrize(
    ("cuda", "extras"), [("12.8", "[pytorch]"), ("13.0", "[pytorch,core_cu13]"), (None, "[pytorch]")]
)
def test_install_line_has_the_pin(cuda, extras):
    pin = parse("transformer-engine[pytorch]==2.11.0; extra == 'gpu'")
    expected = f"python -m pip install --no-build-isolation 'transformer-engine{extras}==2.11.0'"
    assert install_line(COMPONENTS[0], pin, cuda) == expected


@pytest.mark.parametrize(("cuda", "built"), [("12.8", "120"), ("13.0", "130"), (None, "130")])
def test_dali_is_the_one_for_torchs_cuda(cuda, built):
    dali = next(component for component in COMPONENTS if component.name == DALI)
    component, pin = built_for(cuda, dali, parse(f"{DALI}==2.4.0; extra == 'dali'"))
    assert component.name == f"nvidia-dali-cuda{built}"
    assert install_line(component, pin, cuda) == f"python -m pip install 'nvidia-dali-cuda{built}==2.4.0'"
