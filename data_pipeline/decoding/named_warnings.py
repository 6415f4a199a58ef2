"""What Pillow warns of, with the name of the image."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def named_warnings(name: str) -> Iterator[None]:
    """Warnings of the block are given after it, with the image's name in front.

    ``catch_warnings`` changes what all threads see, so threads wait for each other here: those of ``DaliTiler`` that
    decode with Pillow what DALI does not, and no other.
    """
    caught: list[warnings.WarningMessage] = []
    try:
        with _ONE_AT_A_TIME, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        for warning in caught:
            warnings.warn(f"image {name}: {warning.message}", warning.category, stacklevel=3)
