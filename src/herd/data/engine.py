"""Running the tasks of curation: in this process, in a pool of processes, or on Ray, with the same results.

A task is a function of one picklable value that writes files and returns what JSON can hold. Its result is written
beside them, last, and stands for the task's being done: a run that was killed skips what has a result. Results come
back in the order of the tasks, whoever finished first, so that nothing written depends on how many work at it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from herd import console
from herd.artifact import canonical_json, write_atomically
from herd.console import HerdError
from herd.process import cores, keep_memory

T = TypeVar("T")

MAX_CRASHES = 2  # of one task with nothing beside it: then the task itself is what kills its worker
_RAY_RETRIES = 3


@dataclass(frozen=True)
class Engine:
    """Who does the work: `workers` processes of this machine, or Ray's. One worker is this process itself."""

    kind: Literal["local", "ray"] = "local"
    workers: int | None = None

    @property
    def processes(self) -> int:
        return self.workers or cores()


class _Job(NamedTuple):
    function: Callable[[Any], Any]
    task: Any
    result: Path


class Crew:
    """An engine at work, for a `with` block: processes are started when first needed, and ended with the block."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pool: ProcessPoolExecutor | None = None
        self._ray: Any = None  # the module, where this crew started Ray

    def run(self, title: str, function: Callable[[T], Any], tasks: Sequence[tuple[str, T]], folder: Path) -> list[Any]:
        """Results of `function` over named tasks, in their order; those found in `folder` are not computed again.

        `function` is found by import in other processes: a function of a module, not a closure. It is called once
        more where its process was killed. Raises what it raises, and HerdError where a task kills its worker again
        and again or Ray is not installed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [_Job(function, task, folder / f"{name}.json") for name, task in tasks]
        waiting = [job for job in jobs if not job.result.is_file()]
        if self._engine.kind == "ray":
            ended = self._on_ray(waiting)
        else:
            ended = self._in_pool(waiting) if min(self._engine.processes, len(waiting)) > 1 else _here(waiting)
        with console.progress(title, len(jobs)) as bar, contextlib.closing(ended):
            for done, _ in enumerate(ended, len(jobs) - len(waiting) + 1):
                bar.update(done, f"{done:,} of {len(jobs):,}")
        return [json.loads(job.result.read_text(encoding="utf-8")) for job in jobs]

    def _in_pool(self, jobs: list[_Job]) -> Generator[None]:
        """Jobs in processes. Where one vanished, those left go one by one, to find the one that kills its worker."""
        ended = 0
        try:
            for _ in self._pooled(jobs):
                ended += 1
                yield
        except BrokenProcessPool:
            self._pool = None
            left = [job for job in jobs if not job.result.is_file()]
            yield from [None] * (len(jobs) - len(left) - ended)
            console.warn(
                f"a worker process vanished (killed, or out of memory?); {len(left):,} tasks go on one at a time"
            )
            for job in left:
                yield self._alone(job)

    def _alone(self, job: _Job) -> None:
        for _ in range(MAX_CRASHES):
            try:
                list(self._pooled([job]))
                return
            except BrokenProcessPool:
                self._pool = None
        raise HerdError(
            f"the task {job.result.stem} killed its worker process {MAX_CRASHES} times, which looks like too little "
            "memory: lower data.part_bytes; what is done is kept"
        )

    def _pooled(self, jobs: list[_Job]) -> Generator[None]:
        """Jobs in the pool as they are done; never more are queued than keep the processes busy."""
        processes = self._engine.processes
        if self._pool is None:
            self._pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin)
        running: set[Future[None]] = set()
        for job in jobs:
            running.add(self._pool.submit(_perform, job))
            if len(running) >= 2 * processes:
                yield from _ended(running)
        while running:
            yield from _ended(running)

    def _on_ray(self, jobs: list[_Job]) -> Generator[None]:
        """Jobs as Ray tasks: Ray places them, repeats those of lost machines, and moves what they return.

        All machines must see the run's folder under the same path. An address in RAY_ADDRESS is used; without one Ray
        starts on this machine, and ends with the crew.
        """
        try:
            import ray
            from ray.exceptions import RayError, RayTaskError
        except ImportError:
            raise HerdError("data.engine = 'ray' needs Ray: pip install 'llm-herd[cluster]'") from None
        if not ray.is_initialized():
            cores = {"num_cpus": self._engine.processes, "include_dashboard": False}
            ray.init(
                log_to_driver=False, logging_level=logging.ERROR, **({} if os.environ.get("RAY_ADDRESS") else cores)
            )
            self._ray = ray
        remote = ray.remote(_perform).options(max_retries=_RAY_RETRIES, num_cpus=1)
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        running: list[Any] = []
        try:
            for job in jobs:
                running.append(remote.remote(job))
                if len(running) >= most:
                    yield _next_of(ray, running)
            while running:
                yield _next_of(ray, running)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise HerdError(
                f"Ray lost a task {_RAY_RETRIES + 1} times ({type(error).__name__}), which looks like too little "
                "memory: lower data.part_bytes; what is done is kept"
            ) from None
        finally:
            for task in running:
                ray.cancel(task)

    def __enter__(self) -> Crew:
        keep_memory()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._ray is not None:
            self._ray.shutdown()
        if self._pool is None:
            return
        if kind is not None:
            for process in list((self._pool._processes or {}).values()):  # Ctrl-C should not wait for a long task
                process.terminate()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        self._pool = None


def _perform(job: _Job) -> None:
    """Do one job, wherever this runs, and write down that it is done."""
    write_atomically(job.result, canonical_json(job.function(job.task)))


def _here(jobs: list[_Job]) -> Generator[None]:
    for job in jobs:
        yield _perform(job)


def _begin() -> None:
    """Set up a worker: it leaves Ctrl-C to its parent, and ends with it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_memory()
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _ended(running: set[Future[None]]) -> Iterator[None]:
    """Wait for at least one of what runs; takes out what is done, and raises what that raised."""
    ready, _ = wait(running, return_when=FIRST_COMPLETED)
    running -= ready
    for future in ready:
        yield future.result()


def _next_of(ray: Any, running: list[Any]) -> None:
    ready, running[:] = ray.wait(running)
    ray.get(ready[0])
