"""Limits of the machine; doctor's modules need the standard library alone."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil

from megatron_focus.diagnosis.machine import existing_part, inspect_machine, size

ROOT = Path(__file__).parents[3]


def test_sizes_are_those_of_psutil():
    machine = inspect_machine()
    assert machine.memory == psutil.virtual_memory().total
    assert machine.cores == len(psutil.Process().cpu_affinity())


def test_limits_that_end_in_trouble():
    machine = replace(inspect_machine(), shared_memory=64 * 2**20, open_files=1024)
    assert [(finding.about, finding.is_problem) for finding in machine.findings()] == [
        ("/dev/shm", False),
        ("open files", False),
    ]
    assert replace(machine, shared_memory=2**34, open_files=65536).findings() == []


def test_sizes_for_people():
    assert [size(3 * 2**20), size(1.5 * 2**30), size(2**40)] == ["3 MiB", "1.5 GiB", "1,024.0 GiB"]


def test_folders_that_are_not_there_yet(tmp_path):
    assert existing_part(tmp_path / "a" / "b") == tmp_path


def test_doctor_begins_without_any_package():
    modules = "megatron_focus.diagnosis.doctor, megatron_focus.diagnosis.doctor_report"
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '{ROOT}'); import {modules}"]
    )
    assert run.returncode == 0
