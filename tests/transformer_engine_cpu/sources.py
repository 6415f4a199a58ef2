"""Imports the real Python of Transformer Engine on a CPU, on top of stand-ins for its compiled extension.

Its wheel has sources alone. tests/run.sh puts it, and what it imports, into a folder of the virtual environment that is
not on the import path: Megatron-Core, transformers and accelerate would take it for a working installation. Only
processes of these tests add it, by ``install``.

What is its own here: modules, autograd functions, tensor-parallel communication, the choice of an attention, FusedAdam;
and Megatron-Core's ``extensions/transformer_engine.py`` on top. What is stood in: its kernels (``kernels.py``,
``attention_kernels.py``), the extension's enumerations, a few names of ``torch.cuda``, Triton's decorators. Not seen
here: the kernels themselves, streams, NCCL, speed, memory.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from tests.transformer_engine_cpu.attention_kernels import NVTE_Fused_Attn_Backend
from tests.transformer_engine_cpu.kernels import DEVICE, STAND_INS, DType, numbered

VERSION = "2.11.0"
FOLDER = Path(sys.prefix) / f"transformer-engine-{VERSION}"
needs_sources = pytest.mark.skipif(
    torch.cuda.is_available() or not FOLDER.is_dir(),
    reason=f"needs no CUDA, and Transformer Engine's sources in {FOLDER}, where tests/run.sh puts them",
)

_MODULES = str(FOLDER / "transformer_engine") + os.sep
_ENUMS = {
    "NVTE_QKV_Layout": [
        f"NVTE_{layout}"
        for layout in [
            "SB3HD",
            "SBH3D",
            "SBHD_SB2HD",
            "SBHD_SBH2D",
            "SBHD_SBHD_SBHD",
            "BS3HD",
            "BSH3D",
            "BSHD_BS2HD",
            "BSHD_BSH2D",
            "BSHD_BSHD_BSHD",
            "T3HD",
            "TH3D",
            "THD_T2HD",
            "THD_TH2D",
            "THD_THD_THD",
            "SBHD_BSHD_BSHD",
            "BSHD_SBHD_SBHD",
            "THD_BSHD_BSHD",
            "THD_SBHD_SBHD",
            "Paged_KV_BSHD_BSHD_BSHD",
            "Paged_KV_BSHD_SBHD_SBHD",
            "Paged_KV_SBHD_BSHD_BSHD",
            "Paged_KV_SBHD_SBHD_SBHD",
            "Paged_KV_THD_BSHD_BSHD",
            "Paged_KV_THD_SBHD_SBHD",
        ]
    ],
    "NVTE_QKV_Format": [
        f"NVTE_{form}" for form in ["SBHD", "BSHD", "THD", "BSHD_2SBHD", "SBHD_2BSHD", "THD_2BSHD", "THD_2SBHD"]
    ],
    "NVTE_Bias_Type": ["NVTE_NO_BIAS", "NVTE_PRE_SCALE_BIAS", "NVTE_POST_SCALE_BIAS", "NVTE_ALIBI"],
    "NVTE_Mask_Type": [
        f"NVTE_{mask}_MASK"
        for mask in ["NO", "PADDING", "CAUSAL", "PADDING_CAUSAL", "CAUSAL_BOTTOM_RIGHT", "PADDING_CAUSAL_BOTTOM_RIGHT"]
    ],
    "NVTE_Softmax_Type": ["NVTE_VANILLA_SOFTMAX", "NVTE_OFF_BY_ONE_SOFTMAX", "NVTE_LEARNABLE_SOFTMAX"],
}
_OPEN_ENUMS = ("FP8FwdTensors", "FP8BwdTensors", "CommOverlapType", "CommOverlapAlgo", "Float8BlockScaleTensorFormat")
_CLASSES = [
    "FP8TensorMeta",
    "CommOverlapHelper",
    "CommOverlap",
    "CommOverlapP2P",
    "CommOverlapBase",
    "CommOverlapP2PBase",
    "CommOverlapCore",
]


class _Open(type):
    """A class whose attributes are numbers, made where they are named."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(cls, name, len(vars(cls)))
        return getattr(cls, name)


class _Extension(types.ModuleType):
    """``transformer_engine_torch``; what is not stood in raises where it is called, not where it is named."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise NotImplementedError(f"transformer_engine_torch.{name} has no stand-in")

        return missing


def _extension() -> types.ModuleType:
    module = _Extension("transformer_engine_torch")
    vars(module).update(STAND_INS)
    vars(module).update({name: numbered(name, members) for name, members in _ENUMS.items()})
    vars(module).update({name: _Open(name, (), {}) for name in _OPEN_ENUMS})
    vars(module).update({name: type(name, (), {}) for name in _CLASSES})
    module.DType, module.NVTE_Fused_Attn_Backend = DType, NVTE_Fused_Attn_Backend
    module.get_num_cublas_streams = lambda: 1
    module.get_cublasLt_version = lambda: 130000
    module.get_cudnn_version = lambda: DEVICE["cudnn"]
    module.get_stream_priority_range = lambda: (0, -5)
    return module


def _asked_by_transformer_engine() -> bool:
    frame = sys._getframe(2)
    while frame.f_code.co_name == "__torch_function__":  # of the CPU backend's mode
        frame = frame.f_back
    return frame.f_code.co_filename.startswith(_MODULES)


class _Properties:
    multi_processor_count = 132

    @property
    def major(self):
        return DEVICE["major"]

    @property
    def minor(self):
        return DEVICE["minor"]


def _name_triton() -> list[str]:
    """Names that decorators need; no kernel of Triton's is ever started."""

    def decorator(*args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else lambda function: function

    names = ["triton", "triton.language", "triton.language.standard"]
    for name in names:
        module = MagicMock(name=name, __path__=[], __version__="0.0", __spec__=None)
        module.jit = module.autotune = module.heuristics = decorator
        sys.modules[name] = module
    sys.modules["triton"].language = sys.modules["triton.language"]
    return names


def install() -> None:
    """Make ``import transformer_engine`` give the real Python, in this process, before Megatron-Core is imported."""
    assert not torch.cuda.is_available() and "megatron.core" not in sys.modules
    for module in ("torch._dynamo", "torch._inductor.compile_fx"):  # they look for Triton, and must not meet its names
        importlib.import_module(module)
    triton = _name_triton() if importlib.util.find_spec("triton") is None else []
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # Transformer Engine's own switch: do not load CUDA's libraries
    sys.path.append(str(FOLDER))
    torch.cuda.is_available = lambda: _asked_by_transformer_engine()
    # Not by a mode of torch's: those are off inside backward passes.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.is_cuda = property(lambda self: _asked_by_transformer_engine())
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.graphs.is_current_stream_capturing = lambda: False
    torch.cuda.current_device = lambda: torch.device("cpu")  # the project's CPU backend says the same
    torch.cuda.get_device_properties = lambda device=None: _Properties()
    torch.cuda.get_device_capability = lambda device=None: (DEVICE["major"], DEVICE["minor"])
    sys.modules["transformer_engine_torch"] = _extension()
    package = types.ModuleType("transformer_engine")
    package.__path__ = [str(FOLDER / "transformer_engine")]
    package.__spec__ = importlib.machinery.ModuleSpec("transformer_engine", None, is_package=True)
    package.__version__ = VERSION
    sys.modules["transformer_engine"] = package
    package.common = importlib.import_module("transformer_engine.common")
    package.common.load_framework_extension = lambda framework: None
    package.pytorch = importlib.import_module("transformer_engine.pytorch")
    for name in triton:
        del sys.modules[name]  # nobody else shall take it for Triton
