"""Import and export of random models, measured from end to end."""

import filecmp
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from megatron_focus.benchmark.conversion.layouts import write_layout
from megatron_focus.benchmark.conversion.random_models import RandomModel, write_model
from megatron_focus.benchmark.conversion.table import Conversion
from megatron_focus.benchmark.conversion.tool_process import run_tool

IMPORT_TOOL, EXPORT_TOOL = "tools.import_hf", "tools.export_hf"
LAYOUTS = ((2, 1), (2, 2))
"""Tensor and pipeline parallel sizes of the checkpoints that are exported beside the imported one."""
_SAMPLER = ["model.text_sampler.layer=1", "model.text_sampler.layer_range=[0,1]"]
"""For the smallest models; the defaults are for 32 layers."""


def run(sizes: Sequence[float], parent: Path | None) -> list[Conversion]:
    """Import a random model of each size, and export it from the import and from checkpoints of ``LAYOUTS``.

    Args:
        sizes: of the weights, in 10^9 bytes.
        parent: where the temporary folder goes, which needs four times the size of the largest model; the system's
            place if not given.

    Raises:
        ValueError: a tool failed, or exports of one model differ.
        OSError: there is no space.
    """
    found: list[Conversion] = []
    with tqdm(total=len(sizes) * (3 + 2 * len(LAYOUTS)), unit="step", file=sys.stderr) as bar:
        for size in sizes:
            with tempfile.TemporaryDirectory(dir=parent) as folder:
                found += _measure(Path(folder), size, bar)
    return found


def _measure(folder: Path, size: float, bar: tqdm) -> list[Conversion]:
    bar.set_description(f"{size:g} GB: writing a model")
    model = write_model(folder, size)
    bar.update()
    imported = folder / "imported"
    sources = ["--llm", str(model.llm), "--vision", str(model.vision), "--tokenizer", str(model.tokenizer)]
    found = [_tool("import", IMPORT_TOOL, [*sources, "--output", str(imported), *_SAMPLER], model, bar)]
    shutil.rmtree(model.llm)
    shutil.rmtree(model.vision)
    first = folder / "export"
    found.append(_export("export from import", imported, first, model, bar))
    for tensor_parallel, pipeline_parallel in LAYOUTS:
        name = f"TP {tensor_parallel} x PP {pipeline_parallel}"
        bar.set_description(f"{size:g} GB: writing {name}")
        checkpoint, release = folder / "checkpoint", folder / "again"
        write_layout(imported, checkpoint, tensor_parallel, pipeline_parallel)
        bar.update()
        found.append(_export(f"export from {name}", checkpoint, release, model, bar))
        if different := _different(first, release):
            raise ValueError(f"{', '.join(different)} of {name} differ from those of the import's export")
        shutil.rmtree(checkpoint)
        shutil.rmtree(release)
    return found


def _export(name: str, checkpoint: Path, release: Path, model: RandomModel, bar: tqdm) -> Conversion:
    return _tool(name, EXPORT_TOOL, ["--checkpoint", str(checkpoint), "--output", str(release)], model, bar)


def _tool(name: str, module: str, arguments: list[str], model: RandomModel, bar: tqdm) -> Conversion:
    bar.set_description(name)
    run = run_tool(module, [*arguments, "--quiet"])
    bar.update()
    return Conversion(size=model.num_bytes, largest_tensor=model.largest_tensor, name=name, run=run)


def _different(one: Path, other: Path) -> list[str]:
    """Weight files of two releases that are not equal."""
    names = sorted({path.name for folder in (one, other) for path in folder.glob("*.safetensors")})
    equal, _, _ = filecmp.cmpfiles(one, other, names, shallow=False)
    return [name for name in names if name not in equal]
