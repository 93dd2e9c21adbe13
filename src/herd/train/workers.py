"""Parallel work on one machine: processes of one thread each, whose progress shows in the parent's terminal.

For tiny networks two processes of one thread beat one of two. A worker ends with its parent, however that ends: it
watches a pipe that only the parent holds open, so a killed run leaves nothing behind that still writes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

from herd import console
from herd.console import HerdError
from herd.process import keep_memory, release_memory


class Workers:
    """A pool of worker processes, for use in a `with` block; leaving it by an exception kills them at once."""

    def __init__(self, processes: int, threads: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self._events = context.Queue()
        watched, self._held_open = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(processes, context, _begin, (self._events, watched, threads))
        self._reader = threading.Thread(target=self._relay, daemon=True)

    def __enter__(self) -> Workers:
        self._reader.start()
        return self

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run a module-level function in a worker."""
        return self._pool.submit(function, *arguments)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._held_open.close()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            self._events.cancel_join_thread()  # a killed worker may have held the queue's lock
        self._events.put(None)
        self._reader.join(timeout=2)
        if kind is not None and issubclass(kind, BrokenProcessPool):
            raise HerdError("a worker process died (out of memory?); start again to go on where it stopped") from None

    def _relay(self) -> None:
        while (event := self._events.get()) is not None:
            console.deliver(console.Event(*event))


def _begin(events: Any, watched: Any, threads: int) -> None:
    """Set up a worker: one place for progress, no reaction to Ctrl-C (the parent decides), end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    console.redirect(events.put)
    threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()
    set_threads(threads)


def _end_with_parent(watched: Any) -> None:
    try:
        watched.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def set_threads(threads: int) -> None:
    """Threads of this process's tensor operations; what the stage before left in the heap is returned."""
    import torch

    torch.set_num_threads(threads)
    release_memory()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    keep_memory()
