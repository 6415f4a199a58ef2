"""What the launcher of a run says, before Megatron is imported."""

import os


def world_size_from_launcher() -> int:
    """Ranks of this launch: torchrun's or srun's WORLD_SIZE, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_from_launcher() -> int:
    """This process' rank, 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))
