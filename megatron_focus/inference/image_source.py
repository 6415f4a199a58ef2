"""Pictures from files and from the web, read with bounds on bytes, pixels and time."""

import errno
import http.client
import stat
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from PIL import Image

from megatron_focus.inference.upright import decode_upright

MAX_BYTES = 64 * 2**20
"""Larger files are refused."""
MAX_PIXELS = 100_000_000
"""Pictures with more pixels are refused from their headers."""
SILENCE_SECONDS = 15.0
"""How long a server may send nothing."""
DOWNLOAD_SECONDS = 60.0
"""How long a download may take."""
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""What the system says of a path that leads nowhere; anything else is said of storage, and may be over soon."""


def open_picture(source: str) -> Image.Image:
    """A picture, RGB and upright, from a path or an http(s) address.

    Raises:
        ValueError: naming the source and what is wrong: another scheme, no such file, no answer, too many bytes or
            pixels, not a picture, a damaged one.
        OSError: naming the source: the storage that it lies on cannot be read, now at least.
    """
    scheme, separator, _ = source.partition("://")
    if not separator:
        data = _read_file(source)
    elif scheme.lower() in ("http", "https"):
        data = download(source, MAX_BYTES, SILENCE_SECONDS, DOWNLOAD_SECONDS)
    else:
        raise ValueError(f"image {source}: addresses begin with http:// or https://, not {scheme}://")
    return decode_upright(data, source, MAX_PIXELS)


def _read_file(path: str) -> bytes:
    """The bytes of a file.

    Raises:
        ValueError: if there is no such file, or it is larger than ``MAX_BYTES``.
        OSError: if it cannot be read.
    """
    check_file(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ValueError(f"image {path}: no such file") from error
    except OSError as error:
        raise OSError(f"image {path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"image {path}: more than {MAX_BYTES} bytes")
    return data


def check_file(path: str | Path) -> None:
    """Look whether a picture's file is there.

    Raises:
        ValueError: if there is no such file.
        OSError: if the storage does not say.
    """
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            raise ValueError(f"image {path}: no such file") from error
        raise OSError(f"image {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"image {path}: no such file")


def _web_only() -> OpenerDirector:
    """Opens http and https alone, also where a server redirects to something else."""
    opener = OpenerDirector()
    web = (HTTPHandler(), HTTPSHandler(), HTTPRedirectHandler(), HTTPDefaultErrorHandler(), HTTPErrorProcessor())
    for handler in (ProxyHandler(), UnknownHandler(), *web):
        opener.add_handler(handler)
    return opener


def download(url: str, max_bytes: int, silence_seconds: float, total_seconds: float) -> bytes:
    """What a server sends for an http(s) address.

    Args:
        url: the address.
        max_bytes: more is refused, by the header or while reading.
        silence_seconds: how long the server may send nothing.
        total_seconds: how long the download may take.

    Raises:
        ValueError: naming the address and what is wrong.
    """
    deadline = time.monotonic() + total_seconds
    data = bytearray()
    try:
        request = Request(url, headers={"User-Agent": "megatron-focus"})
        with _web_only().open(request, timeout=silence_seconds) as response:
            declared = response.headers.get("Content-Length", "")
            if declared.isdecimal() and int(declared) > max_bytes:
                raise ValueError(f"image {url}: {declared} bytes, more than {max_bytes}")
            # One piece as it arrives, so that a server that trickles cannot outlast the deadline.
            while piece := response.read1(2**16):
                data += piece
                if len(data) > max_bytes:
                    raise ValueError(f"image {url}: more than {max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise ValueError(f"image {url}: not complete after {total_seconds:g} seconds")
            if declared.isdecimal() and len(data) < int(declared):
                raise ValueError(f"image {url}: ended after {len(data)} of {declared} bytes")
    except URLError as error:
        raise ValueError(f"image {url}: {error if hasattr(error, 'code') else error.reason}") from error
    except TimeoutError as error:
        raise ValueError(f"image {url}: no data for {silence_seconds:g} seconds") from error
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"image {url}: {error or type(error).__name__}") from error
    return bytes(data)
