"""What an export can be asked for."""

FORMATS = ("focus-llava", "llava-next")
"""Layouts of the folder: this project's release, and that of transformers' own LLaVA-NeXT."""

MAX_SHARD_SIZE = "5GB"
"""Largest weight file."""
