"""Ranks forked on this machine: results by rank, and a failure in one ends all."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from torch import distributed

from herd.console import HerdError
from herd.train.parallel.ranks import run_ranks


def summed(base: float) -> tuple[int, torch.Tensor]:
    value = torch.tensor([base + distributed.get_rank()])
    distributed.all_reduce(value)
    return distributed.get_rank(), value


def test_results_come_by_rank():
    results = run_ranks(3, summed, 1.0)
    assert [rank for rank, _ in results] == [0, 1, 2]
    assert all(value.item() == 6.0 for _, value in results)


def fails_on_one(how: str) -> None:
    if distributed.get_rank() == 1:
        if how == "herd":
            raise HerdError("a problem that a person can act on")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyError("the missing thing")
    time.sleep(60)


def test_a_failure_in_one_rank_ends_all_and_says_where():
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"rank 1 failed(.|\n)*in fails_on_one(.|\n)*the missing thing"):
        run_ranks(2, fails_on_one, "error")
    with pytest.raises(HerdError, match=r"^a problem that a person can act on$"):
        run_ranks(2, fails_on_one, "herd")
    with pytest.raises(RuntimeError, match="rank 1 ended without a result"):
        run_ranks(2, fails_on_one, "killed")
    assert time.monotonic() - started < 50  # rank 0 would sleep for 60 s


def sleeps_on_zero() -> None:
    if distributed.get_rank() == 0:
        time.sleep(60)


def test_ranks_that_do_not_end_are_named():
    with pytest.raises(TimeoutError, match=r"ranks 0(, 1)? had not ended after 3 s"):
        run_ranks(2, sleeps_on_zero, timeout=3.0)
