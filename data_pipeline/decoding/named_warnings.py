"""What Pillow warns of, with the name of the image."""

import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_NAMED = 3
"""Images that are named for each place that warns; Python remembers the text of every warning, so not all of them."""
_given: Counter[tuple[type[Warning], str, int]] = Counter()
"""Warnings of each place in this process."""
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def named_warnings(name: str) -> Iterator[None]:
    """Warnings of the block are given after it, with the image's name in front: the first few of each kind.

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
            kind = (warning.category, warning.filename, warning.lineno)
            _given[kind] += 1
            if _given[kind] <= _NAMED:
                more = " (the next images with this warning are not named)" if _given[kind] == _NAMED else ""
                warnings.warn(f"image {name}: {warning.message}{more}", warning.category, stacklevel=3)
