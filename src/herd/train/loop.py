"""The only training loop: next-token, dialogs, reward and preference by the same steps, on one process or a mesh.

A step is: batch, forward and backward over its micro-batches (losses weighted by tokens), clip, AdamW. The state is
checkpointed by the clock, less often where that takes long, and restored bit for bit, so a killed run ends with the
weights of an undisturbed one (but where it rolled back: what it went back to was saved by the clock).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from torch import nn

from herd.artifact import write_atomically
from herd.console import HerdError, progress, warn
from herd.process import release_memory
from herd.recipe import Optimizer
from herd.recipe_compute import Compute, Saving
from herd.train.anomaly import Watch
from herd.train.checkpoint import Checkpoints
from herd.train.hardware import Hardware
from herd.train.metrics import bits_per_byte
from herd.train.network import Batches, Network, RememberedBatches, Whole
from herd.train.objective import Objective, next_token
from herd.train.optim import Schedule, adamw
from herd.train.telemetry import Telemetry

CHECKPOINT_SHARE = 0.04  # of the time at most: 135M parameters with their optimizer state take 5 s to write
RELEASE_EVERY_SECONDS = 45.0  # without this the heap of a 135M network grew from 5 to 6.3 GB in a hundred steps
LOG_POINTS = 400


@dataclass(frozen=True)
class Plan:
    """How to train: `steps` steps; `compute` says how they are computed, saved and watched.

    `bytes_per_token`: of the text, where losses are to be logged in bits a byte too.
    """

    steps: int
    schedule: Schedule
    optimizer: Optimizer
    compute: Compute = field(default_factory=Compute)
    bytes_per_token: float | None = None


class Step(NamedTuple):
    """Mean loss, gradient norm before clipping, and what the loss was divided by: tokens, or pairs."""

    loss: float
    norm: float
    counted: int


@dataclass
class TrainState:
    """What a run has to show: its metrics so far (one row a log point), what went wrong at which step, and seconds."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


def train(
    model: nn.Module | Network,
    objective: Objective,
    batches: Batches,
    plan: Plan,
    hardware: Hardware,
    title: str,
    checkpoints: Path | None = None,
    at: Sequence[int] = (),
    on_reach: Callable[[int], None] | None = None,
) -> TrainState:
    """Train a model in place, or a network that `launch.open_network` spread over ranks; returns its metrics.

    `checkpoints`: folder to save to and resume from. `on_reach(step)` is called on every rank after each number of
    steps in `at` (also again after a resume, with the same weights). Metrics hold nothing that depends on the clock.
    Raises HerdError on a loss that is not finite, naming the step, unless the recipe lets it go on.
    """
    network = Whole(model, hardware, plan.compute) if isinstance(model, nn.Module) else model
    run = _Run(network, objective, batches, plan, hardware, title, checkpoints)
    with run, progress(title, plan.steps) as bar:
        run.resume()
        while run.done < plan.steps:
            run.step()
            due = run.done % max(1, plan.steps // LOG_POINTS) == 0 or run.done == plan.steps
            if due and (row := run.log()):
                bar.update(run.done, f"loss {row['loss']:.3f}  {run.speed():,.0f} tokens/s")
            if on_reach and run.done in at:
                on_reach(run.done)
            run.save_in_time()
            run.telemetry.restart()
    return run.state


class _Run:
    """One training: what moves from step to step."""

    def __init__(
        self,
        network: Network,
        objective: Objective,
        batches: Batches,
        plan: Plan,
        hardware: Hardware,
        title: str,
        folder: Path | None,
    ) -> None:
        self.done = 0
        self._network, self._objective, self._batches, self._plan = network, objective, batches, plan
        self._title = title
        self._optimizer = adamw(network.trained.values(), plan.optimizer)
        known = network.config if objective is next_token else None
        self.telemetry = Telemetry(network.place, folder, plan.compute, hardware, known)
        self.state, self._pending = TrainState(), list[Step]()  # steps since the last log point
        self._watch = Watch(plan.compute.anomalies)
        saving, together = plan.compute.checkpoints, network.place.ranks > 1
        where = _place_of_checkpoints(network, saving, folder) if folder else None
        self._checkpoints = Checkpoints(where, saving, self.telemetry.writing, together) if where else None
        self._wait = saving.every_seconds
        self._back = 0  # the step of the checkpoint last rolled back to
        self._saved = self._released = self._started = time.monotonic()
        self._before = 0.0

    def resume(self) -> None:
        """Go on from the newest checkpoint, where there is one."""
        if self._checkpoints and (found := self._checkpoints.load(self._network.saved, self._optimizer)):
            self.done, extra = found
            if isinstance(self._batches, RememberedBatches) and extra["batches"] is not None:
                self._batches.check(extra["batches"])
            self._network.loaded(self._optimizer)
            self._pending = [Step(*row) for row in extra["pending"]]
            self.state = TrainState(**extra["state"])
            self._watch.restore(extra["watch"])
            self._before = self.state.seconds
        self.telemetry.begin(self._title, self.done)

    def step(self) -> None:
        """One step, or what the recipe says where it went wrong."""
        network, telemetry, number = self._network, self.telemetry, self.done + 1
        with telemetry.own(number, "batch"):
            batch = network.read(self._batches, self.done)
        with telemetry.waiting(f"forward and backward of step {number}"):  # ranks wait for one another in there
            result = train_step(network, self._objective, batch, self._plan)
        verdict = self._watch.judge(number, result.loss, result.norm)
        if verdict.reason:
            self.state.events.append({"step": number, "action": verdict.action, "reason": verdict.reason})
            if network.leads and verdict.action != "stop":
                warn(f"{self._title}: {verdict.reason}")
        if verdict.action == "stop":
            raise HerdError(f"{self._title}: {verdict.reason}")
        if verdict.action == "go":
            with telemetry.own(number, "optimizer"):
                set_rate(self._optimizer, self._plan.schedule(self.done))
                self._optimizer.step()
            self._pending.append(result)
            if not self._watch.in_a_row:
                self._back = 0
        elif verdict.action == "roll-back":
            self._roll_back()
        self._optimizer.zero_grad(set_to_none=True)
        self.done = number
        telemetry.completed(number)

    def _roll_back(self) -> None:
        """Weights and moments of the newest checkpoint; the batches since then, this one included, are given up.

        A second time in a row the one before it is taken, where there is one: the newest may be of the trouble's
        beginning. Until the trouble is over nothing is saved, or it would push out what to go back to.
        """
        if self._checkpoints and self._back and self._checkpoints.any_before(self._back):
            self._checkpoints.discard_after(self._back - 1)
        found = self._checkpoints and self._checkpoints.load(self._network.saved, self._optimizer)
        if found:
            self._back = found[0]
            self._network.loaded(self._optimizer)
        if self._network.leads:
            back = f"the weights of step {found[0]}" if found else "no checkpoint yet, so the step is skipped"
            warn(f"{self._title}: {back}")

    def log(self) -> dict[str, float]:
        """The row of a log point: means over the steps since the last one; empty where none counted."""
        if not self._pending:
            return {}
        loss = sum(row.loss for row in self._pending) / len(self._pending)
        norm = sum(row.norm for row in self._pending) / len(self._pending)
        tokens = sum(row.counted for row in self._pending)
        self.state.tokens += tokens
        row = {"step": self.done, "tokens": self.state.tokens, "loss": loss}
        if self._plan.bytes_per_token:
            row["bits_per_byte"] = bits_per_byte(loss, self._plan.bytes_per_token)
        row |= {"gradient_norm": norm, "learning_rate": self._plan.schedule(self.done - 1)}
        self.state.metrics.append(row)
        self.telemetry.write(row, tokens)
        self._pending.clear()
        self.state.seconds = self._before + time.monotonic() - self._started
        return self.state.metrics[-1]

    def speed(self) -> float:
        return self.state.tokens / self.state.seconds

    def save_in_time(self) -> None:
        """Save where it is time, and at the end; give memory back."""
        now = time.monotonic()
        self.telemetry.entered(self.done, "checkpoint")
        due = self._network.agree(now - self._saved > self._wait) or self.done == self._plan.steps
        if self._checkpoints and due and not self._back:
            batches = self._batches.state(self.done) if isinstance(self._batches, RememberedBatches) else None
            extra = {"pending": self._pending, "state": asdict(self.state), "watch": self._watch.state()}
            extra["batches"] = batches
            loss = self.state.metrics[-1]["loss"] if self.state.metrics else None
            self._checkpoints.save(self.done, self._network.saved, self._optimizer, extra, loss)
            self._saved = time.monotonic()
            took = max(self._saved - now, self._checkpoints.seconds)  # to copy this one, to write the one before
            self._wait = max(self._plan.compute.checkpoints.every_seconds, took / CHECKPOINT_SHARE)
        if now - self._released > RELEASE_EVERY_SECONDS:
            release_memory()
            self._released = now

    def __enter__(self) -> _Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The last save is done, or was given up with the run."""
        self.telemetry.__exit__(kind, error, trace)  # first: a long save is no hang
        if self._checkpoints:
            self._checkpoints.__exit__(kind, error, trace)
        self.state.seconds = self._before + time.monotonic() - self._started


def _place_of_checkpoints(network: Network, saving: Saving, folder: Path) -> Path | str:
    """The folder, or one of the recipe's address that belongs to it: where the folder was cleared to train anew, the
    address gets another one."""
    if not saving.to:
        return folder
    mark = folder / "checkpoints.txt"
    if network.leads and not mark.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(mark, os.urandom(4).hex())
    return f"{saving.to.rstrip('/')}/{folder.name}-{network.told(mark.read_text() if network.leads else '')}"


def train_step(network: Network, objective: Objective, batch: Any, plan: Plan) -> Step:
    """Gradients of a step's batch, clipped; the optimizer's step is the caller's."""
    loss, count = network.accumulate(objective, batch)
    norm = network.clip(plan.optimizer.clip_norm)
    return Step(float(loss), float(norm), count)


def set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
