"""The order of samples: a function of (seed, epoch) alone, so it can be resumed anywhere on any number of ranks."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=2)  # a global batch may touch the end of one epoch and the beginning of the next
def order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """A permutation of ``range(n)``, int64 [n], read-only.

    It sorts raw Philox output, whose stream NumPy keeps stable between versions (``Generator.permutation``'s it does
    not), so a run resumed in a newer environment sees the same order.
    """
    assert seed >= 0 and epoch >= 0
    permutation = np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(n), kind="stable")
    permutation.flags.writeable = False
    return permutation


def step_indices(seed: int, n: int, begin: int, count: int) -> NDArray[np.int64]:
    """The samples at places ``begin`` to ``begin + count`` of the endless sequence of epochs, int64 [count].

    A batch that reaches the end of an epoch continues in the next one: nothing is lost or repeated.
    """
    assert n > 0 and begin >= 0
    parts = []
    while count > 0:
        epoch, position = divmod(begin, n)
        part = order(seed, epoch, n)[position : position + count]
        parts.append(part)
        begin += len(part)
        count -= len(part)
    return np.concatenate(parts)
