"""Which rank is slow: the ranks of a mesh wait for one another in every step, so all of them look equally slow.

What tells them apart is work in which no rank waits for another. The loop marks such work (`with clock.own():` around
the batch and around the optimizer step), and now and then each rank times a small matrix product on its own device.
Every few steps one small all-gather brings these times together, and a rank that holds up the others is named.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

import torch
import torch.distributed as dist

from herd.console import say, warn
from herd.recipe_compute import Mesh
from herd.train.hardware import synchronize

EVERY_STEPS = 20
LAG_SHARE = 0.1  # of a step: a rank that holds up the others less is not worth a line
PROBE_TIMES = (
    1.5  # the median's time: ranks of one kind of device differ by a few percent (paper 3.3.4: 1 to 2% by day)
)
PROBE_SIZE = {"cuda": 4096}  # rows and columns of the product: 0.2 to 0.4 ms there
PROBE_SIZE_CPU = 256
PROBE_TRIES = 5  # the best of them counts


class Place(NamedTuple):
    """Where a process stands: rank, host, process id and coordinates in the mesh (`dp 0 pp 1 cp 0 tp 0`)."""

    rank: int
    ranks: int
    host: str
    pid: int
    coordinates: str

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid}, {self.coordinates})"


def coordinates(mesh: Mesh, rank: int) -> str:
    """Coordinates of a rank, outermost first: rank = tp + TP * (cp + CP * (pp + PP * dp)) (paper 3.3.2)."""
    rest, tp = divmod(rank, mesh.tp)
    rest, cp = divmod(rest, mesh.cp)
    dp, pp = divmod(rest, mesh.pp)
    return f"dp {dp} pp {pp} cp {cp} tp {tp}"


def this_place(mesh: Mesh, rank: int) -> Place:
    """Where this process stands in a mesh."""
    return Place(rank, mesh.size, socket.gethostname(), os.getpid(), coordinates(mesh, rank))


class RankTimes(NamedTuple):
    """Seconds of each rank, in order of rank: a step, its own work in a step (medians), the product on its device."""

    step: tuple[float, ...]
    own: tuple[float, ...]
    probe: tuple[float, ...]

    def row(self) -> dict[str, float]:
        """What goes into `speed.jsonl`."""
        return {
            "rank_step_seconds_min": min(self.step),
            "rank_step_seconds_median": median(self.step),
            "rank_step_seconds_max": max(self.step),
            "rank_own_seconds_median": median(self.own),
            "rank_own_seconds_max": max(self.own),
            "rank_probe_seconds_median": median(self.probe),
            "rank_probe_seconds_max": max(self.probe),
            "slowest_rank": self.own.index(max(self.own)),
        }


class Slow(NamedTuple):
    """A slow rank, how many times slower it is than the others, and by what one sees it."""

    rank: int
    times: float
    why: str


def find_slow(times: RankTimes) -> list[Slow]:
    """Ranks that hold up the others, or whose device computes slower than theirs, slowest first.

    A rank whose own work takes longer than the median's by a tenth of a step or more holds them up by that much. How
    many times slower it is: the step as it is, against a step without that.
    """
    step, own, probe = median(times.step), median(times.own), median(times.probe)
    found = []
    for rank in range(len(times.own)):
        lag = times.own[rank] - own
        rest = max(step - lag, own, 1e-6)
        if lag >= LAG_SHARE * step and lag > 0:
            why = f"its own work takes {times.own[rank]:.3g} s a step, the median rank's {own:.3g} s"
            found.append(Slow(rank, (rest + lag) / rest, why))
        elif times.probe[rank] > PROBE_TIMES * probe > 0:
            why = (
                f"a matrix product on its device takes {1e3 * times.probe[rank]:.3g} ms, the median's {1e3 * probe:.3g}"
            )
            found.append(Slow(rank, times.probe[rank] / probe, why))
    return sorted(found, key=lambda slow: -slow.times)


class StepClock:
    """Times this rank's steps, compares them with the other ranks', and names slow ranks (rank 0 does, one line each).

    A slow rank is named when it is found, again when it has been slow for twice as long, and when it no longer is.
    """

    def __init__(self, place: Place, device: torch.device, every: int = EVERY_STEPS) -> None:
        self._place, self._device, self._every = place, device, every
        self._own = 0.0
        self._steps: list[tuple[float, float]] = []  # seconds of a step, and of own work in it
        self._slow_steps: dict[int, int] = {}  # rank -> steps it has been slow for
        self._places = _all_places(place)
        self._began = time.perf_counter()

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Around work in which this rank waits for no other."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._own += time.perf_counter() - began

    def restart(self) -> None:
        """Forget the time since the last step: it went into something else (a checkpoint, an evaluation)."""
        self._began, self._own = time.perf_counter(), 0.0

    def completed(self, step: int) -> RankTimes | None:
        """To be called by every rank after each step (counted from 1); every so many steps the times of all ranks.

        That is a collective: all ranks must call with the same step.
        """
        now = time.perf_counter()
        self._steps.append((now - self._began, self._own))
        self._began, self._own = now, 0.0
        if step % self._every:
            return None
        mine = (median(s for s, _ in self._steps), median(o for _, o in self._steps), _probe(self._device))
        times = RankTimes(*zip(*self._gather(mine), strict=True))
        if self._place.rank == 0:
            self._tell(find_slow(times), len(self._steps))
        self._steps.clear()
        self.restart()
        return times

    def _gather(self, mine: tuple[float, float, float]) -> list[list[float]]:
        if self._place.ranks == 1:
            return [list(mine)]
        sent = torch.tensor(mine, dtype=torch.float32, device=self._device)  # float64 is not everywhere
        received = [torch.empty_like(sent) for _ in range(self._place.ranks)]
        dist.all_gather(received, sent)
        return [row.tolist() for row in received]

    def _tell(self, found: Sequence[Slow], steps: int) -> None:
        for rank in self._slow_steps.keys() - {slow.rank for slow in found}:
            say(f"{self._places[rank]} is no longer slow, after {self._slow_steps.pop(rank)} steps")
        for slow in found:
            before = self._slow_steps.get(slow.rank, 0)
            now = self._slow_steps[slow.rank] = before + steps
            if before == 0 or (now // steps).bit_length() > (before // steps).bit_length():
                warn(f"{self._places[slow.rank]} is {slow.times:.2g} times slower for {now} steps: {slow.why}")


def _all_places(place: Place) -> list[Place]:
    if place.ranks == 1:
        return [place]
    places: list[Place | None] = [None] * place.ranks
    dist.all_gather_object(places, place)
    return [found for found in places if found is not None]


def _probe(device: torch.device) -> float:
    """Seconds of a matrix product on the device, the best of a few: what it can do, not what else it does."""
    size = PROBE_SIZE.get(device.type, PROBE_SIZE_CPU)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    left = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(PROBE_TRIES):
        synchronize(device)
        began = time.perf_counter()
        torch.mm(left, left)
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
