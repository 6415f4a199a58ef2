"""What nvidia-smi and the driver say, with a stand-in for nvidia-smi that prints what the real one prints."""

import pytest

from megatron_focus.diagnosis.gpus import driver_problem, parse_gpus, query_gpus

OLD = """#!/usr/bin/env bash
case "$1" in
  *,remapped_rows.pending,*) echo 'Field "remapped_rows.pending" is not a valid field to query.'; exit 2 ;;
  --query-gpu=index,*) echo "0, GPU-aa-1, NVIDIA A100-SXM4-80GB, 81920, 4, 550.90.07, 8.0"
                       echo "1, GPU-bb-2, NVIDIA A100-SXM4-80GB, 81920, 9000, 550.90.07, 8.0" ;;
  --query-gpu=ecc.*) printf '0\\n3\\n' ;;
  --query-gpu=remapped_rows.pending) echo 'Field "remapped_rows.pending" is not a valid field to query.'; exit 2 ;;
  --query-gpu=remapped_rows.failure) printf '[N/A]\\nNo\\n' ;;
  --query-gpu=*hw_thermal*) printf 'Not Active\\nActive\\n' ;;
  --query-gpu=*) printf 'Not Active\\nNot Active\\n' ;;
esac
"""


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    def write(script):
        (tmp_path / "nvidia-smi").write_text(script)
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return write


NEW = """#!/usr/bin/env bash
echo "$1" >> "$(dirname "$0")/calls"
echo "0, GPU-aa-1, NVIDIA H100 80GB HBM3, 81559, 4, 580.1, 9.0, 0, No, No, Not Active, Not Active, Not Active"
echo "1, GPU-bb-2, NVIDIA H100 80GB HBM3, 81559, 4, 580.1, 9.0, 2, Yes, Yes, Not Active, Active, Active"
"""


def test_one_call_is_enough(nvidia_smi, tmp_path):
    nvidia_smi(NEW)
    good, bad = query_gpus()
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
    assert (good.name, good.problems(), good.warnings()) == ("NVIDIA H100 80GB HBM3", [], [])
    assert bad.problems() == [
        "GPU 1: a memory repair waits for a reset of the GPU",
        "GPU 1: a memory repair has failed",
    ]
    assert bad.warnings() == [
        "GPU 1: 2 uncorrected memory (ECC) errors since the driver was loaded",
        "GPU 1: slowed down because it is too hot (driver)",
        "GPU 1: slowed down by its power supply",
    ]


def test_health_of_two_gpus_where_a_field_is_not_known(nvidia_smi):
    nvidia_smi(OLD)
    good, bad = query_gpus()
    assert (good.index, good.uuid, good.memory_mib, good.driver) == (0, "GPU-aa-1", 81920, "550.90.07")
    assert good.problems() == good.warnings() == bad.problems() == []
    assert bad.warnings() == [
        "GPU 1: 3 uncorrected memory (ECC) errors since the driver was loaded",
        "GPU 1: slowed down because it is too hot (hardware)",
    ]
    assert "remapped_rows.pending" not in good.health  # that version does not know it


def test_a_driver_that_does_not_answer(nvidia_smi):
    message = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    nvidia_smi(f'#!/usr/bin/env bash\necho "{message}"\nexit 9\n')
    with pytest.raises(OSError, match="couldn't communicate"):
        query_gpus()


def test_memory_that_is_not_told():
    (gpu,) = parse_gpus([["0", "GPU-a", "GB10", "[N/A]", "[N/A]", "580.1", "12.1"]], {})
    assert (gpu.memory_mib, gpu.problems()) == (0, [])


@pytest.mark.parametrize(
    ("driver", "runtime", "fits"),
    [
        ((13, 0), "12.8", True),  # drivers run older majors
        ((12, 2), "12.8", True),  # and newer minors of their own
        ((12, 8), "13.0", False),
        (None, "13.0", True),  # no driver, nothing to fit
        ((12, 8), None, True),
    ],
)
def test_driver_and_runtime(driver, runtime, fits):
    problem = driver_problem(driver, runtime)
    assert (problem is None) == fits
    assert fits or ("13.0" in problem and "12.8" in problem)
