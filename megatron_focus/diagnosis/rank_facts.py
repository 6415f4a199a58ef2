"""What each rank says of its node, its GPU and its software."""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megatron_focus.config.loading import dump_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.diagnosis.gpus import Gpu, query_gpus
from megatron_focus.diagnosis.launch import Launch
from megatron_focus.diagnosis.run_files import inspect_run_files
from megatron_focus.models.attention_backend import attention_of_run

_PACKAGES = ("torch", "megatron-core", "transformer-engine", "transformers", "numpy")
_SOURCES = ("megatron_focus", "data_pipeline", "tools")
# What changes how a job computes or communicates. The first are the communication libraries'.
_ENVIRONMENT = (
    "NCCL_",
    "GLOO_",
    "UCX_",
    "FI_",
    "TORCH_",
    "PYTORCH_",
    "NVTE_",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "OMP_NUM_",
)
_BUSY_SHARE = 0.05


@dataclass
class RankFacts:
    """Plain values, to be sent as JSON."""

    node: str
    rank: int
    local_rank: int
    same: dict[str, str] = field(default_factory=dict)
    """What has to be equal on all ranks that say it."""
    gpu: dict[str, str] = field(default_factory=dict)
    """``name``, ``GiB``, ``uuid``; empty without CUDA."""
    shown: dict[str, str] = field(default_factory=dict)
    """For people."""
    files: list[str] = field(default_factory=list)
    """What is wrong with the run's files or with its attention, as seen from here."""
    storage: list[str] = field(default_factory=list)
    """What could not be seen of them; a later look may find it in order."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def collect_facts(launch: Launch, config: RunConfig) -> RankFacts:
    """Look at this rank's GPU and software; one process of each node looks at the files as well."""
    facts = RankFacts(launch.node, launch.rank, launch.local_rank, same=software())
    facts.same["configuration"] = short_hash(dump_config(config).encode())
    _gpu(facts)
    if launch.speaks_for_node:
        files = inspect_run_files(config, count_parameters=True)
        facts.same |= files.identity
        facts.shown |= files.described
        for finding in files.findings:
            where = facts.storage if finding.may_pass else facts.files if finding.is_problem else facts.warnings
            where.append(f"{finding.about}: {finding.message}")
        if torch.cuda.is_available():
            _attention(facts, config)
    return facts


def _attention(facts: RankFacts, config: RunConfig) -> None:
    try:
        facts.shown["attention"] = "; ".join(attention_of_run(config))
    except (ValueError, ImportError, OSError) as error:
        facts.files.append(f"attention: {error}")


def software(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Versions, code and environment variables of this process."""
    same = {"python": platform.python_version(), "device": "cuda" if torch.cuda.is_available() else "cpu"}
    for name in _PACKAGES:
        try:
            same[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            same[name] = "not installed"
    if torch.version.cuda is not None:
        same["CUDA of torch"] = torch.version.cuda
        same["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    same["project code"] = code_hash()
    return same | {f"${k}": v for k, v in sorted(environment.items()) if k.startswith(_ENVIRONMENT)}


def code_hash(root: Path = Path(__file__).parents[2]) -> str:
    """Hash of the project's source files, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(path for package in _SOURCES for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def short_hash(content: bytes) -> str:
    """Enough of a SHA-256 to compare."""
    return hashlib.sha256(content).hexdigest()[:12]


def _gpu(facts: RankFacts) -> None:
    gpus: list[Gpu] = []
    try:
        gpus = query_gpus()
    except OSError as error:  # torch may reach the GPU all the same, and every rank has to take its own
        facts.problems.append(str(error))
    if not torch.cuda.is_available():
        if gpus:
            facts.problems.append(
                f"nvidia-smi shows {len(gpus)} GPUs, but torch cannot use CUDA: run tools/doctor.py there"
            )
        return
    index = facts.local_rank % torch.cuda.device_count()  # as the trainer takes it
    torch.cuda.set_device(index)
    properties = torch.cuda.get_device_properties(index)
    facts.gpu = {
        "name": properties.name,
        "GiB": f"{properties.total_memory / 2**30:.0f}",
        "uuid": str(properties.uuid),
    }
    facts.same |= {"GPU": properties.name, "GPU memory": f"{facts.gpu['GiB']} GiB"}
    _health(facts, [gpu for gpu in gpus if gpu.uuid.endswith(facts.gpu["uuid"])])


def _health(facts: RankFacts, own: list[Gpu]) -> None:
    """nvidia-smi's view of this rank's GPU; none where the two do not call it by the same name (MIG)."""
    for gpu in own:
        facts.same["driver"] = gpu.driver
        facts.problems += gpu.problems()
        facts.warnings += gpu.warnings()
        if gpu.used_mib > _BUSY_SHARE * gpu.memory_mib:
            facts.warnings.append(f"GPU {gpu.index}: {gpu.used_mib / 1024:.1f} GiB were in use before the test")
