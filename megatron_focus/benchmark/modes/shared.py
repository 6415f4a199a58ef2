"""Options that several modes take, and the types of values."""

import argparse

from megatron_focus.benchmark.modes.mode import Option
from megatron_focus.benchmark.presets import PRESETS


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def size(text: str) -> tuple[int, int]:
    """Width and height, as in ``640x480``."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 640x480")
    return int(width), int(height)


ROUNDS = Option("--rounds", "rounds that count; training has the preset's", {"type": positive, "metavar": "N"})
PRESET = Option("--preset", "sizes of the model", {"choices": tuple(PRESETS)})
DEVICE = Option("--device", "float32 on cpu, bfloat16 on cuda", {"choices": ("cpu", "cuda")})


def check_cuda(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: there is no CUDA device.
    """
    import torch  # here: the command line does not need it

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("argument --device: torch finds no CUDA device here")
