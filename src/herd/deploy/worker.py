"""One thread that owns the model, and the bounded queue before it.

A job is a function that yields items; its caller reads them in the event loop through a `Stream`. Who goes away
cancels: a job that still waits leaves the queue at once, one that runs sees its stop event set and ends by itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
Job = Callable[[threading.Event], Iterator[T]]
LONGEST_RETRY_SECONDS = 120


class Busy(Exception):
    """The queue is full; `seconds` is when to try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


class Worker:
    """Runs jobs one after the other; at most `waiting` wait behind the one that runs."""

    def __init__(self, waiting: int = 8) -> None:
        self.waiting = waiting
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._streams: set[Stream] = set()
        self._lock = threading.Lock()
        self._took: deque[float] = deque([1.0], maxlen=8)  # seconds of recent jobs, for Retry-After

    @property
    def jobs(self) -> int:
        """Jobs that run or wait."""
        return len(self._streams)

    def submit(self, job: Job[T]) -> Stream[T]:
        """Queue a job; call it in a running event loop. Raises Busy where the queue is full."""
        stream: Stream[T] = Stream(self, asyncio.get_running_loop())
        with self._lock:
            if len(self._streams) > self.waiting:
                seconds = sum(self._took) / len(self._took) * len(self._streams)
                raise Busy(max(1, min(round(seconds), LONGEST_RETRY_SECONDS)))
            self._streams.add(stream)
        stream.future = self._executor.submit(self._run, job, stream)
        return stream

    def close(self) -> None:
        """Cancel every job and wait for the running one to end."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        self._executor.shutdown()

    def _run(self, job: Job[T], stream: Stream[T]) -> None:
        started = time.monotonic()
        try:
            if not stream.stop.is_set():
                for item in job(stream.stop):
                    stream.put(item)
            stream.put(_END)
        except Exception as error:  # handed to the reader, who answers the request with it
            stream.put(_Failed(error))
        finally:
            self._took.append(time.monotonic() - started)
            self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """Give a job's place in the queue to another."""
        with self._lock:
            self._streams.discard(stream)


class Stream(Generic[T]):
    """What a job yields, read once with `async for`, which raises what the job raised. Leaving early cancels it."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        self.stop = threading.Event()
        self.future: Future[None] | None = None
        self._worker, self._loop = worker, loop
        self._items: asyncio.Queue[T | _End | _Failed] = asyncio.Queue()

    def put(self, item: T | _End | _Failed) -> None:
        """Add an item, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:  # the loop has ended: nobody reads any more
            self.stop.set()

    def cancel(self) -> None:
        """End the job, or take it out of the queue."""
        self.stop.set()
        if self.future is not None and self.future.cancel():
            self._worker.forget(self)
            self.put(_END)

    async def __aiter__(self) -> AsyncIterator[T]:
        try:
            while True:
                item = await self._items.get()
                if isinstance(item, _End):
                    return
                if isinstance(item, _Failed):
                    raise item.error
                yield item
        finally:
            self.cancel()


class _End:
    pass


class _Failed:
    def __init__(self, error: Exception) -> None:
        self.error = error


_END = _End()
