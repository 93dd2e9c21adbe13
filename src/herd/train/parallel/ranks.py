"""Several ranks on this machine, forked from this process after its imports: for checks, not for training runs.

A fork shares what is imported already: 16 ranks took 7.5 s where torchrun, which imports torch 16 times, took 54 s.
"""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import distributed

from herd.console import HerdError


def run_ranks(ranks: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """Call `function(*arguments)` in so many processes of one thread each; their results, by rank.

    Each finds torch.distributed initialised (gloo, a store in a temporary folder) and asks it for its rank. Results
    travel through pipes, so they must be picklable; tensors come back as they are. When one rank fails or `timeout`
    seconds pass, all are ended. Raises the HerdError of the first rank that failed, RuntimeError with its traceback
    for any other failure, and TimeoutError naming the ranks that had not ended.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(ranks):
            here, there = context.Pipe(duplex=False)
            arguments_of_rank = (rank, ranks, f"{folder}/store", timeout, there, function, arguments)
            process = context.Process(target=_rank, args=arguments_of_rank, daemon=True)
            process.start()
            there.close()  # so that the pipe ends when the rank does
            pipes.append(here)
            processes.append(process)
        try:
            return _results(pipes, timeout)
        finally:
            for process in processes:
                process.kill()
            for process, pipe in zip(processes, pipes, strict=True):
                process.join()
                pipe.close()


def _rank(
    rank: int,
    ranks: int,
    store: str,
    timeout: float,
    pipe: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    try:
        torch.set_num_threads(1)
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=timeout),
        )
        result = function(*arguments)
        distributed.barrier()  # or the first to end would close connections that others still read from
        message = ("result", result)
    except HerdError as error:
        message = ("herd", str(error))
    except BaseException:
        message = ("error", traceback.format_exc())
    pipe.send_bytes(pickle.dumps(message))  # `send` would share a tensor's memory, which ends with this process
    pipe.close()


def _results(pipes: list[Connection], timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = [rank for rank in range(len(pipes)) if rank not in results]
            raise TimeoutError(f"ranks {', '.join(map(str, missing))} had not ended after {timeout:g} s")
        for pipe in ready:
            rank = next(rank for rank, other in enumerate(pipes) if other is pipe)
            try:
                kind, content = pickle.loads(pipes[rank].recv_bytes())
            except EOFError:
                raise RuntimeError(f"rank {rank} ended without a result") from None
            if kind == "herd":
                raise HerdError(content)
            if kind == "error":
                raise RuntimeError(f"rank {rank} failed:\n{content}")
            results[rank] = content
    return [results[rank] for rank in range(len(pipes))]
