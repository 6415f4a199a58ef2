"""The benchmark of conversion: sizes, memory of a process, table; the tools run on a small model."""

import math
from pathlib import Path

import pytest
from safetensors import safe_open

from megatron_focus.benchmark.conversion import random_models
from megatron_focus.benchmark.conversion import run as module
from megatron_focus.benchmark.conversion.random_models import Shapes, write_model
from megatron_focus.benchmark.conversion.run import run
from megatron_focus.benchmark.conversion.table import Conversion, format_table, verdict
from megatron_focus.benchmark.conversion.tool_process import ToolRun, run_tool

TINY = Shapes(
    up_to=math.inf,
    text={
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    vision={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2},
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(random_models, "SHAPES", (TINY,))


def test_a_model_comes_near_the_wanted_size(tmp_path, tiny):
    model = write_model(tmp_path, 0.001)
    files = [*model.llm.glob("*.safetensors"), *model.vision.glob("*.safetensors")]
    stored = sum(path.stat().st_size for path in files)
    # Two layers of the decoder are 123 kB, so the nearest even number is off by half of that at most; and headers.
    assert abs(model.num_bytes - 1e6) < 62e3 and model.layers % 2 == 0
    assert 0 < stored - model.num_bytes < 50e3
    with safe_open(model.llm / "model.safetensors", framework="pt") as file:
        assert file.get_tensor("model.embed_tokens.weight").std() > 0.01  # not zeros


def test_memory_of_a_process_is_beyond_its_imports(tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text(
        "import sys\nheld = bytearray(b'x' * 30_000_000)\n"
        "def main(arguments):\n    bytearray(b'x' * int(arguments[0]))\n    return int(arguments[0]) < 100\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    found = run_tool("greedy", ["50000000"])
    # Two copies are alive for a moment; the 30 MB of the import do not count.
    assert 95e6 < found.memory < 110e6 and found.libraries > 30e6
    with pytest.raises(ValueError, match="greedy 1 failed"):
        run_tool("greedy", ["1"])


def conversion(name, size, memory):
    run = ToolRun(seconds=2.0, libraries=10**8, memory=memory)
    return Conversion(size=size, largest_tensor=10**8, name=name, run=run)


def test_table_and_verdict():
    small, good = conversion("import", 10**9, 2 * 10**9), conversion("import", 3 * 10**9, 10**9)
    assert "met" in verdict([small, good]) and "NOT" not in verdict([small, good])
    bad = verdict([small, good, conversion("export from TP 2 x PP 2", 3 * 10**9, 1_600_000_000)])
    assert bad.startswith("export from TP 2 x PP 2 of 3.00 GB took 1.60 GB") and "NOT met" in bad
    assert "no model of that size was measured" in verdict([small])
    assert "1500" in format_table([good]) and "33%" in format_table([good])


@pytest.mark.slow
def test_the_whole_benchmark(tiny, tmp_path):
    """Import, export, and the same files from a checkpoint of TP 2 x PP 2: ``run`` refuses others."""
    found = run([0.0005], tmp_path)
    names = ["import", "export from import", *(f"export from TP {tp} x PP {pp}" for tp, pp in module.LAYOUTS)]
    assert [row.name for row in found] == names
    assert all(row.run.seconds > 0 and row.run.memory > 0 for row in found)
    assert not list(tmp_path.iterdir())
