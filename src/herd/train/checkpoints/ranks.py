"""The processes that save and load together: what one of them fails at, all of them fail at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from herd.console import HerdError

T = TypeVar("T")


class Ranks:
    """All processes of torch.distributed over a gloo group of their own, or this one alone where it is not initialised.

    The group is made by all at once: each process makes its `Ranks` at the same point of the program. It serves the
    thread that saves, so that its messages never mix with those of the training.
    """

    def __init__(self, together: bool | None = None) -> None:
        """`together`: absent, where torch.distributed is initialised."""
        self.together = dist.is_available() and dist.is_initialized() if together is None else together
        self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if self.together else None
        self.rank = dist.get_rank() if self.together else 0
        self.count = dist.get_world_size() if self.together else 1

    def agree(self, work: Callable[[], T]) -> T:
        """Each process's own result of `work`. Where some raised, all raise what the first of those did."""
        result: T | None = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        if self.together:
            failures: list[Any] = [None] * self.count
            dist.all_gather_object(failures, failure, group=self.group)
            failure = next((each for each in failures if each is not None), None)
        if failure is not None:
            raise failure
        return cast(T, result)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the first one; an empty list in the others."""
        if not self.together:
            return [value]
        values: list[Any] | None = [None] * self.count if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self.group)
        return values or []

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` gives in the first process; it runs there alone."""
        box: list[Any] = [None]
        if self.rank == 0:
            try:
                box = [work()]
            except Exception as error:
                box = [error]
        if self.together:
            dist.broadcast_object_list(box, src=0, group=self.group)
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]


def cause(error: CheckpointException) -> BaseException:
    """What went wrong in the first process where something did, without torch's wrapping.

    A missing tensor or another shape would be a fault of ours; so is everything that is no error of a file.
    """
    failures = [each for _, (each, _) in sorted(error.failures.items())]
    for each in failures:
        if not isinstance(each, Exception) or isinstance(each, OSError | HerdError):
            return each
    return failures[0]
