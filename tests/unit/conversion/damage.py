"""What can happen to a file of a checkpoint."""

from pathlib import Path


def flip_byte(path: Path, place: float = 0.5) -> None:
    """Change one bit of a file, at this share of its length."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
