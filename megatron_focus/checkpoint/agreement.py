"""Work of one rank whose success or failure all ranks have to know."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class SaveError(RuntimeError):
    """A checkpoint could not be written. What was there before is untouched."""


def on_rank_0(work: Callable[[], Result]) -> Result:
    """Do ``work`` on rank 0 and give its result to all ranks (collective over the world).

    Raises:
        SaveError: ``work`` raised an ``OSError`` or a ``SaveError``; on every rank, so that none waits for another.
    """
    answer: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = work()
        except (OSError, SaveError) as error:
            answer[1] = str(error)
    torch.distributed.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise SaveError(answer[1])
    return answer[0]
