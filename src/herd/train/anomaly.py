"""Steps whose loss or gradient is not finite, or whose loss jumps, and what the recipe does about them.

The paper saw few spikes and stepped in for none (3.4.1), so the default only logs them.

The loop asks `Watch.judge` before each optimizer step, with the loss and the gradient norm of the whole step: the
same numbers on every rank, so that all ranks decide alike without asking one another.

A spike is judged against the median of the last losses, in deviations taken from the 95th percentile of the differences
of neighbours. The loss of a young network falls by whole nats within a window, which is no noise, but between
neighbours it falls little: eight deviations were 0.8 nats at step 60 of a real run, where eight plain standard
deviations were 4.5. A percentile has room for spikes that were only logged: up to a twentieth of the window they don't
hide the next ones. Of 8,461 steps of eight real runs of 0.1M to 0.6M parameters, the worst stood 5.3 such deviations
above the median, and 7.0 where a batch was a single row. All is plain arithmetic in a fixed order: a resumed run
decides as an undisturbed one.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple

from herd.recipe_compute import Anomalies

Action = Literal["go", "skip", "roll-back", "stop"]

RECENT = 16  # steps that the median looks back on: a loss that jumps and stays is normal after half of them
TAIL = 0.95
TAIL_DEVIATIONS = 1.6449 * math.sqrt(2)  # a normal distribution's 95th percentile, for differences of two draws
LEAST_DEVIATION = 0.004  # share of the loss, nats below one: a flat loss trips nothing below 8 x 0.4% by default
LEAST_STEPS = 8


class Verdict(NamedTuple):
    """What to do with a step, and one line for people (empty: nothing to say)."""

    action: Action
    reason: str = ""


class Normal(NamedTuple):
    """What the last steps let expect of the next one: its loss and a standard deviation around it, in nats."""

    loss: float
    deviation: float


class Watch:
    """Judges steps one after the other; its state belongs into checkpoints."""

    def __init__(self, settings: Anomalies) -> None:
        self._settings = settings
        self._losses: deque[float] = deque(maxlen=settings.window_steps)
        self._in_a_row = 0  # skipped or rolled back steps
        self._accepted = 0  # steps since the last of them
        self._rolled_back = False  # whether that one was rolled back
        self._spiking = 0  # steps of a spike that is only logged

    @property
    def in_a_row(self) -> int:
        """Steps skipped or rolled back in a row, the one judged last included.

        A roll-back is in a row with the one before it until a quarter of the window was accepted in between: a network
        that jumps again after three steps did not recover.
        """
        return self._in_a_row

    def judge(self, step: int, loss: float, gradient_norm: float) -> Verdict:
        """Whether a step (counted from 1) may change the weights; `loss` is its mean in nats."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            what = f"loss {loss:.4g}, gradient norm {gradient_norm:.4g} at step {step}"
            return self._act(self._settings.not_finite, what)
        normal = expected(self._losses, self._settings.window_steps)
        if normal and loss > normal.loss + self._settings.spike_deviations * normal.deviation:
            above = (loss - normal.loss) / normal.deviation
            what = f"loss {loss:.4g} at step {step}, {above:.0f} deviations above the {normal.loss:.4g} expected"
            if self._settings.spike != "log":
                return self._act(self._settings.spike, what)
            self._spiking += 1
            self._accept(loss)
            return Verdict("go", what if self._spiking == 1 else "")
        lasted, self._spiking = self._spiking, 0
        self._accept(loss)
        return Verdict("go", f"loss {loss:.4g} at step {step}, back after {lasted} steps" if lasted > 1 else "")

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON; floats survive exactly."""
        return {
            "losses": list(self._losses),
            "in_a_row": self._in_a_row,
            "accepted": self._accepted,
            "rolled_back": self._rolled_back,
            "spiking": self._spiking,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken."""
        self._losses = deque(state["losses"], maxlen=self._settings.window_steps)
        self._in_a_row, self._accepted = state["in_a_row"], state["accepted"]
        self._rolled_back, self._spiking = state["rolled_back"], state["spiking"]

    def _accept(self, loss: float) -> None:
        self._losses.append(loss)
        self._accepted += 1
        if not self._rolled_back or self._accepted >= _enough(self._settings.window_steps):
            self._in_a_row = 0

    def _act(self, action: Literal["skip", "roll-back", "stop"], what: str) -> Verdict:
        if action == "stop":
            return Verdict("stop", f"{what}; lower the learning rate")
        self._in_a_row += 1
        self._accepted, self._rolled_back = 0, action == "roll-back"
        most = self._settings.most_in_a_row
        if self._in_a_row > most:
            return Verdict("stop", f"{what}, after {most} steps in a row {_DONE[action]}; lower the learning rate")
        return Verdict(action, f"{what}; {_DONE[action]} ({self._in_a_row} of at most {most} in a row)")


_DONE = {"skip": "skipped", "roll-back": "rolled back"}


def expected(losses: Sequence[float], window: int) -> Normal | None:
    """Expectation of the next loss from the last ones, oldest first; None for fewer than a quarter of the window."""
    count = len(losses)
    if count < _enough(window):
        return None
    values = list(losses)
    loss = median(values[-RECENT:])
    rises = sorted(after - before for before, after in itertools.pairwise(values))
    tail = rises[math.ceil(TAIL * len(rises)) - 1] if rises else 0.0
    return Normal(loss, max(tail / TAIL_DEVIATIONS, LEAST_DEVIATION * max(1.0, abs(loss))))


def _enough(window: int) -> int:
    """Steps before the first judgement: a quarter of the window."""
    return min(window, max(LEAST_STEPS, window // 4))
