"""By what two evaluations are known to be of the same questions and the same release."""

import hashlib
from pathlib import Path

PROBES = 16
"""Places in a file of weights that are read."""
PROBE_BYTES = 1 << 16

PROCESSOR_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "processor_config.json",
    "preprocessor_config.json",
    "generation_config.json",
)
"""Tokenizer, chat template, image processor and the ids that end an answer, by transformers' names."""


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def processor_sha256(folder: Path) -> str:
    """SHA-256 of the names and contents of a release's files that turn questions into inputs, and outputs into text."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in PROCESSOR_FILES for file in folder.glob(pattern) if file.is_file()}):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def weights_sample_sha256(folder: Path) -> str:
    """SHA-256 of the names and sizes of a release's weight files and of a sample of their bytes.

    It tells two checkpoints of one training apart without reading all of a large model.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with open(file, "rb") as stream:
            for probe in range(PROBES):
                stream.seek(max(0, size - PROBE_BYTES) * probe // (PROBES - 1))
                digest.update(stream.read(PROBE_BYTES))
    return digest.hexdigest()
