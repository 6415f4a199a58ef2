"""``tools/doctor.py`` as a user runs it, with and without the packages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_focus.diagnosis import doctor as doctor_module
from megatron_focus.diagnosis.components import FoundComponent
from megatron_focus.diagnosis.doctor import Diagnosis
from megatron_focus.diagnosis.doctor_report import report
from megatron_focus.diagnosis.gpus import Gpu
from megatron_focus.diagnosis.machine import inspect_machine
from megatron_focus.diagnosis.packages import Package, installed_version
from megatron_focus.diagnosis.torch_probe import TorchFacts
from tests.unit.diagnosis.run_folder import write_run_folder
from tools.doctor import main

ROOT = Path(__file__).parents[3]


def test_where_nothing_is_installed(tmp_path):
    """``-S`` hides all that pip has installed from the doctor itself."""
    command = [sys.executable, "-I", "-S", str(ROOT / "tools" / "doctor.py"), "run.yaml", "--json", "found.json"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1, run.stderr
    assert "python -m pip install 'torch>=2.11,<2.14'" in run.stdout
    assert "configuration: not checked: it takes megatron-core, torch" in run.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert {package["state"] for package in found["needed"]} == {"missing"}


@pytest.fixture
def installed(monkeypatch):
    """Everything found as it is, without the seconds that importing all of it takes."""

    def look(wanted):
        return [Package(name=n, version=installed_version(n), error=None, wanted=v) for n, v in wanted]

    monkeypatch.setattr(doctor_module, "inspect_packages", look)
    monkeypatch.setattr(doctor_module, "inspect_components", lambda *_: [])
    monkeypatch.setattr(doctor_module, "query_gpus", lambda: [])
    monkeypatch.setattr(doctor_module, "probe_torch", TorchFacts)


@pytest.fixture(scope="module")
def run_yaml(tmp_path_factory):
    return write_run_folder(tmp_path_factory.mktemp("doctor") / "files")


def test_a_configuration_that_can_run(run_yaml, installed, capsys):
    assert main([str(run_yaml)]) == 0
    said = capsys.readouterr().out
    assert "4 samples in 2 shards" in said
    assert "ranks                    1 (TP 1 x PP 1 x DP 1), no GPU here" in said
    assert "doctor: no problems" in said.splitlines()[-1]


def test_a_configuration_with_missing_parts(run_yaml, installed, capsys):
    assert main([str(run_yaml), "data.path=/nowhere", "checkpoint.pretrained=/nowhere", "--world-size", "5"]) == 1
    said = capsys.readouterr().out
    assert "data.path: /nowhere/dataset.json: no such file" in said
    assert "checkpoint.pretrained: /nowhere is not a complete checkpoint" in said
    assert "doctor: 2 problems" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml does not exist"),
        (["{yaml}", "training.nonsense=1"], "nonsense"),
        (["{yaml}", "--json", "/nowhere/found.json"], "/nowhere/found.json"),
    ],
)
def test_input_that_cannot_be_read(run_yaml, installed, capsys, arguments, message):
    assert main([argument.format(yaml=run_yaml) for argument in arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--world-size", "2"], ["run.yaml", "--world-size", "0"], ["--wat"]])
def test_command_lines_that_make_no_sense(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_gpus_and_a_torch_that_cannot_use_them(monkeypatch, installed):
    gpu = Gpu(
        index=0,
        uuid="GPU-a",
        name="H100",
        memory_mib=81920,
        used_mib=40000,
        driver="535",
        compute_capability="9.0",
        health={"clocks_throttle_reasons.sw_thermal_slowdown": "Active", "remapped_rows.failure": "Yes"},
    )
    monkeypatch.setattr(doctor_module, "query_gpus", lambda: [gpu])
    monkeypatch.setattr(doctor_module, "driver_cuda_version", lambda: (12, 2))
    monkeypatch.setattr(doctor_module, "probe_torch", lambda: TorchFacts(cuda="13.0", error="driver too old"))
    found = doctor_module.diagnose()
    assert [(f.about, f.is_problem) for f in found.findings if f.about in ("GPUs", "torch")] == [
        ("GPUs", True),
        ("GPUs", False),
        ("GPUs", False),
        ("torch", True),
    ]
    monkeypatch.setattr(doctor_module, "probe_torch", lambda: TorchFacts(cuda=None))
    assert "built without CUDA" in doctor_module.diagnose().problems()[-1].message


def test_the_table_has_the_line_that_installs():
    missing = Package(name="transformer-engine", version=None, error=None, wanted="==2.11.0")
    diagnosis = Diagnosis(
        machine=inspect_machine(), optional=[FoundComponent(missing, "fused attention", "pip install it")]
    )
    lines = report(diagnosis, 1.0).splitlines()
    row = next(number for number, line in enumerate(lines) if "transformer-engine" in line)
    assert lines[row].split()[:3] == ["missing", "transformer-engine", "-"]
    assert lines[row + 1].strip() == "pip install it"
