"""By what two evaluations are known to be of the same questions and the same release."""

import hashlib
from pathlib import Path

PROBES = 16
"""Places in a file of weights that are read."""
PROBE_BYTES = 1 << 16


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
