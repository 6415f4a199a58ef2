"""Reading a picture that somebody uploaded, with bounds on its bytes and pixels."""

from pathlib import Path

from PIL import Image

from megatron_focus.inference.upright import decode_upright

MAX_BYTES = 32 * 2**20
"""Larger files are refused."""
MAX_PIXELS = 25_000_000
"""Pictures with more pixels are refused from their headers: drawing one takes about 30 bytes a pixel."""


def read_upload(path: Path) -> Image.Image:
    """The picture, RGB and upright.

    Raises:
        ValueError: naming the file, without its folder, and what is wrong with it.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"image {path.name}: more than {MAX_BYTES // 2**20} MiB")
    return decode_upright(data, path.name, MAX_PIXELS)
