"""The only training loop: next-token, dialogs, reward and preference by the same steps.

A step is: batch, forward and backward over its micro-batches (losses weighted by tokens), clip, AdamW. The state is
checkpointed by the clock, less often where that takes long, and restored bit for bit, so a killed run ends with the
weights of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from herd.console import HerdError, progress
from herd.process import release_memory
from herd.recipe import Optimizer
from herd.train.checkpoint import Checkpoints
from herd.train.hardware import Hardware
from herd.train.objective import Objective
from herd.train.optim import Schedule, adamw

CHECKPOINT_EVERY_SECONDS = 30.0
CHECKPOINT_SHARE = 0.04  # of the time at most: 135M parameters with their optimizer state take 5 s to write
RELEASE_EVERY_SECONDS = 45.0  # without this the heap of a 135M network grew from 5 to 6.3 GB in a hundred steps
LOG_POINTS = 400


class TrainBatch(Protocol):
    """What a step trains on. `count` is what its summed loss is divided by: targets, or pairs."""

    @property
    def count(self) -> int: ...

    def split(self, rows: int) -> Iterator[TrainBatch]:
        """Micro-batches of at most so many rows."""
        ...


class Batches(Protocol):
    """Batches by step: a Loader, or anything that gives the same batch for the same step."""

    def __getitem__(self, step: int) -> TrainBatch: ...


@dataclass(frozen=True)
class Plan:
    """How to train: `steps` steps over `batches`, at most `micro_sequences` rows at a time through the network."""

    steps: int
    schedule: Schedule
    optimizer: Optimizer
    micro_sequences: int = 64


@dataclass
class TrainState:
    """What a run has to show: its metrics so far (one row a log point) and the seconds it took."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


def train(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    plan: Plan,
    hardware: Hardware,
    title: str,
    checkpoints: Path | None = None,
    at: Sequence[int] = (),
    on_reach: Callable[[int], None] | None = None,
) -> TrainState:
    """Train `model` in place; returns its metrics.

    `checkpoints`: folder to save to and resume from. `on_reach(step)` is called after each number of steps in `at`
    (also again after a resume, with the same weights). Metrics hold nothing that depends on the clock.
    Raises HerdError on a loss that is not finite, naming the step.
    """
    optimizer = adamw(model, plan.optimizer)
    state, done = TrainState(), 0
    pending: list[tuple[torch.Tensor, torch.Tensor, int]] = []  # steps since the last log point
    parameters = dict(model.named_parameters())
    saves = Checkpoints(checkpoints) if checkpoints else None
    if saves and (found := saves.load(parameters, optimizer)):
        done, extra = found
        pending = [(torch.tensor(loss), torch.tensor(norm), tokens) for loss, norm, tokens in extra.pop("pending")]
        state = TrainState(**extra)
    saved = released = started = time.monotonic()
    wait = CHECKPOINT_EVERY_SECONDS
    before = state.seconds
    log_every = max(1, plan.steps // LOG_POINTS)
    model.train()
    with progress(title, plan.steps) as bar, saves or contextlib.nullcontext():
        while done < plan.steps:
            pending.append(train_step(model, objective, batches[done], optimizer, plan, done, hardware))
            done += 1
            if done % log_every == 0 or done == plan.steps:
                _log(state, pending, done, plan.schedule(done - 1), title)
                state.seconds = before + time.monotonic() - started
                rate = state.tokens / state.seconds
                bar.update(done, f"loss {state.metrics[-1]['loss']:.3f}  {rate:,.0f} tokens/s")
            if on_reach and done in at:
                on_reach(done)
            if saves and (begun := time.monotonic()) - saved > wait:
                saves.save(done, parameters, optimizer, _plain(state, pending))
                saved = time.monotonic()
                wait = max(CHECKPOINT_EVERY_SECONDS, max(saved - begun, saves.seconds) / CHECKPOINT_SHARE)
            if time.monotonic() - released > RELEASE_EVERY_SECONDS:
                release_memory()
                released = time.monotonic()
    optimizer.zero_grad(set_to_none=True)  # what follows may need the memory
    state.seconds = before + time.monotonic() - started
    return state


def train_step(
    model: nn.Module, objective: Objective, batch: TrainBatch, optimizer: Any, plan: Plan, step: int, hardware: Hardware
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """One optimizer step; mean loss, gradient norm before clipping, and what the loss was divided by."""
    for group in optimizer.param_groups:
        group["lr"] = plan.schedule(step)
    optimizer.zero_grad(set_to_none=True)
    count, total = batch.count, torch.zeros((), device=hardware.device)
    for part in batch.split(plan.micro_sequences):
        loss = objective(model, part, hardware.dtype) / count
        loss.backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan.optimizer.clip_norm)
    optimizer.step()
    return total, norm, count


def _log(
    state: TrainState, pending: list[tuple[torch.Tensor, torch.Tensor, int]], step: int, rate: float, title: str
) -> None:
    loss = float(torch.stack([row[0] for row in pending]).mean())
    norm = float(torch.stack([row[1] for row in pending]).mean())
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise HerdError(f"{title}: loss {loss}, gradient norm {norm} at step {step}; lower the learning rate")
    state.tokens += sum(row[2] for row in pending)
    state.metrics.append(
        {"step": step, "tokens": state.tokens, "loss": loss, "gradient_norm": norm, "learning_rate": rate}
    )
    pending.clear()


def _plain(state: TrainState, pending: list[tuple[torch.Tensor, torch.Tensor, int]]) -> dict[str, Any]:
    rows = [[float(loss), float(norm), tokens] for loss, norm, tokens in pending]
    return {"metrics": state.metrics, "tokens": state.tokens, "seconds": state.seconds, "pending": rows}
