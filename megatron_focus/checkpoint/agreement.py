"""Work of one rank whose success or failure all ranks have to know."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class SaveError(RuntimeError):
    """A checkpoint could not be written. What was there before is untouched."""


class SupersededError(RuntimeError):
    """A later start of the same job has taken over the folder of checkpoints; this one has nothing left to do."""


def on_rank_0(work: Callable[[], Result]) -> Result:
    """Do ``work`` on rank 0 and give its result to all ranks (collective over the world).

    Raises:
        SaveError: ``work`` raised an ``OSError`` or a ``SaveError``; on every rank, so that none waits for another.
        SupersededError, ValueError: as ``work`` raised it, on every rank.
    """
    answer: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = work()
        except (OSError, SaveError) as error:
            answer[1] = SaveError(str(error))
        except (SupersededError, ValueError) as error:
            answer[1] = type(error)(str(error))
    torch.distributed.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]
