"""What is seen of a training while it runs: rows of metrics and speed, slow and hung ranks, faults made on purpose."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from herd.model.config import ModelConfig
from herd.recipe_compute import Compute
from herd.train.faults import Faults
from herd.train.hardware import Hardware, measured_peak
from herd.train.metrics import Log, speed_row
from herd.train.stragglers import Place, RankTimes, StepClock
from herd.train.watchdog import Watchdog

WORTH_MEASURING = 1_000_000  # parameters: the peak takes a second to measure, and says nothing of smaller networks


class Telemetry:
    """Sees one training on this rank; for use in a `with` block. Without a folder nothing is written or watched.

    `config`: of the network, where tokens counted are tokens that pass through it, so that FLOPs are known.
    """

    def __init__(
        self, place: Place, folder: Path | None, compute: Compute, hardware: Hardware, config: ModelConfig | None
    ) -> None:
        self._place, self._folder, self._compute, self._hardware = place, folder, compute, hardware
        self._config = config if config and config.matmul_parameters >= WORTH_MEASURING else None
        self._faults = Faults.from_environment(place.rank, folder) if folder else None
        self._clock = StepClock(place, hardware.device) if place.ranks > 1 else None
        self._log = Log(None)
        self._dog: Watchdog | None = None
        self._stack = ExitStack()
        self._seconds: list[float] = []  # of the steps since the last row
        self._began = time.perf_counter()
        self._rank_times: RankTimes | None = None

    def begin(self, title: str, after: int) -> None:
        """Open the log of a run that begins, or resumes, with so many steps done."""
        leads = self._place.rank == 0
        self._log = self._stack.enter_context(Log(self._folder if leads else None, self._compute.log, title, after))
        if self._place.ranks > 1 and self._folder:
            dog = Watchdog(self._place, self._folder / "ranks", self._compute.hang_seconds)
            self._dog = self._stack.enter_context(dog)
        self.restart()

    @contextmanager
    def own(self, step: int, what: str) -> Iterator[None]:
        """Around work of a step (from 1) in which this rank waits for no other."""
        self.entered(step, what)
        if self._faults and what == "batch":
            self._faults.at(step)
        with self._clock.own() if self._clock else ExitStack():
            yield

    def entered(self, step: int, what: str) -> None:
        if self._dog:
            self._dog.entered(f"{what} of step {step}")

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around what ends only when all ranks come."""
        with self._dog.waiting(what) if self._dog else ExitStack():
            yield

    def writing(self, file: str) -> None:
        """Before a file of a checkpoint is written. Raises OSError where a fault wants a full disk."""
        if self._faults:
            self._faults.writing(file)

    def completed(self, step: int) -> None:
        """So many steps are done."""
        now = time.perf_counter()
        self._seconds.append(now - self._began)
        self._began = now
        if self._clock and (times := self._clock.completed(step)):
            self._rank_times = times
        if self._dog:
            self._dog.completed(step)

    def restart(self) -> None:
        """What passed since the last step was no step: a checkpoint, an evaluation."""
        self._began = time.perf_counter()
        if self._clock:
            self._clock.restart()

    def write(self, row: Mapping[str, float], tokens: int) -> None:
        """The row of a log point, after which so many more tokens were trained on."""
        if self._seconds:
            speed = self._speed(tokens)
            self._log.write(int(row["step"]), {k: v for k, v in row.items() if k != "step"}, speed)
        self._seconds.clear()

    def _speed(self, tokens: int) -> dict[str, float]:
        device, ranks = self._hardware.device, self._place.ranks
        if self._config is None or self._place.rank:
            row = speed_row(self._seconds, tokens, device)
        else:
            flops = self._config.train_flops_per_token()
            peak = measured_peak(device, self._hardware.dtype)
            row = speed_row(self._seconds, tokens, device, flops, peak, ranks)
        return row | (self._rank_times.row() if self._rank_times else {})

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()
