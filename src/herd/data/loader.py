"""Which tokens a step trains on: a pure function of seed and step, so that a run resumes at any step in constant time
and memory, on any number of data-parallel ranks.

Sequences are windows of context + 1 tokens cut from the streams. How many of the first n windows come from a stream
is its share of n, rounded, whether the shares move or not; and within a stream every window is used once before any is
used again. Nothing is drawn one after the other: both the stream of the n-th window and its place in the stream's
epoch are computed from n.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from herd.console import HerdError, warn
from herd.data.mix import Mixture, natural_mixture

Integers = NDArray[np.int64]

_MASK = (1 << 64) - 1
ROUNDS = 6  # of the Feistel network; four make a pseudo-random permutation (Luby & Rackoff 1988)


@dataclass(frozen=True)
class Batch:
    """Token ids and the ids that follow them, both (sequences, context) int64; `documents` numbers documents."""

    inputs: np.ndarray
    targets: np.ndarray
    documents: np.ndarray

    @property
    def count(self) -> int:
        """What a step's loss is divided by: its targets."""
        return self.targets.size

    def split(self, rows: int) -> Iterator[Batch]:
        """Micro-batches of at most so many rows."""
        for start in range(0, len(self.inputs), rows):
            cut = np.s_[start : start + rows]
            yield Batch(self.inputs[cut], self.targets[cut], self.documents[cut])


class Loader:
    """Batches of one stretch of training with constant shape.

    `mixture` gives the streams' shares, from the first step to the last; without it they weigh as much as they have
    tokens. `weights` multiplies shares by stream, kind or group (`Mixture.weighed`), as annealing up-samples good
    sources. A stream of less than one window is left out with a warning. Raises HerdError where that is all of them,
    or a weight names no stream there is.
    """

    def __init__(
        self,
        streams: Mapping[str, np.ndarray],
        context: int,
        sequences: int,
        steps: int,
        seed: int,
        bos_id: int,
        weights: Mapping[str, float] | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        self.context, self.sequences, self.steps, self.bos_id = context, sequences, steps, bos_id
        used = {name: stream for name, stream in sorted(streams.items()) if len(stream) > context}
        if not used:
            raise HerdError(f"no stream of tokens is longer than the context of {context} tokens: add text")
        if short := sorted(set(streams) - set(used)):
            warn(f"less than one window of {context} tokens of {', '.join(short)}: not trained on")
        mixture = (mixture or natural_mixture({name: len(stream) for name, stream in streams.items()})).weighed(
            (weights or {}) | {name: 0.0 for name in short}
        )
        self._streams = list(used.values())
        self._windows = [(len(stream) - 1) // context for stream in self._streams]
        self._shares = [(mixture.start[name], mixture.end[name]) for name in used]
        self._tree = _tree(self._shares)
        self._seed = seed

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0. Raises IndexError for a step that is not planned."""
        return self.part(step, 0, 1)

    def part(self, step: int, rank: int, ranks: int) -> Batch:
        """The rows of a step's batch that one of so many data-parallel ranks trains on; only they are read.

        Parts are contiguous and differ by one row at most; put together they are the batch, whatever `ranks` is.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a loader of {self.steps}")
        first, last = (self.sequences * r // ranks for r in (rank, rank + 1))
        numbers = np.arange(step * self.sequences + first, step * self.sequences + last)
        rows = np.empty((len(numbers), self.context + 1), np.int64)
        for row, (stream, turn) in enumerate(zip(*self._assign(numbers), strict=True)):
            rows[row] = self._window(int(stream), int(turn))
        inputs = rows[:, :-1]
        return Batch(inputs, rows[:, 1:], np.cumsum(inputs == self.bos_id, axis=1))

    def state(self, step: int) -> dict[str, Any]:
        """All that a checkpoint must hold to go on at a step: a few numbers, for JSON."""
        return {
            "step": step,
            "seed": self._seed,
            "context": self.context,
            "sequences": self.sequences,
            "steps": self.steps,
            "windows": self._windows,
            "shares": [list(pair) for pair in self._shares],
        }

    def check(self, state: Mapping[str, Any]) -> int:
        """The step that a state says to go on at.

        Raises HerdError where the state is of a loader whose batches are others, naming what differs.
        """
        mine = self.state(state["step"])
        if differ := [name for name in mine if mine[name] != state.get(name)]:
            name = differ[0]
            raise HerdError(f"the checkpoint's batches are not these: {name} was {state.get(name)}, is {mine[name]}")
        return state["step"]

    def _assign(self, numbers: Integers) -> tuple[Integers, Integers]:
        """For the windows of these numbers: which stream each comes from, and how many of it came before."""
        streams, turns = np.zeros_like(numbers), np.zeros_like(numbers)
        horizon = float(self.steps * self.sequences)
        waiting = [(self._tree, np.arange(len(numbers)), numbers)]
        while waiting:
            node, rows, before = waiting.pop()
            if not node.children:
                streams[rows], turns[rows] = node.stream, before
                continue
            left, right = node.children
            ranks, next_ranks = (_rounded(node, left, before + one, horizon) for one in (0, 1))
            chosen = next_ranks > ranks
            waiting.append((left, rows[chosen], ranks[chosen]))
            waiting.append((right, rows[~chosen], (before - ranks)[~chosen]))
        return streams, turns

    def _window(self, stream: int, turn: int) -> np.ndarray:
        windows = self._windows[stream]
        epoch, position = divmod(turn, windows)
        key = derive_seed(self._seed, "windows", stream, epoch)
        start = permuted(position, windows, key) * self.context
        return self._streams[stream][start : start + self.context + 1]


class _Node(NamedTuple):
    """A stream, or two nodes; `start` and `end` are their share of all windows at both ends of the training."""

    start: float
    end: float
    stream: int
    children: tuple[_Node, _Node] | tuple[()]

    def windows(self, time: NDArray[np.float64], horizon: float) -> NDArray[np.float64]:
        """How many of the first `time` windows are its own: its share's integral."""
        return time * (self.start + (self.end - self.start) / (2 * horizon) * time)

    def time(self, windows: Integers, horizon: float) -> NDArray[np.float64]:
        """Inverse of `windows`: the quadratic formula in the form that does not cancel."""
        bend = 2 * (self.end - self.start) / horizon
        root = self.start + np.sqrt(np.maximum(0.0, self.start**2 + bend * windows))
        time = np.divide(2.0 * windows, root, out=np.zeros(len(windows)), where=root > 0)
        return np.minimum(time, horizon)


def _rounded(node: _Node, child: _Node, before: Integers, horizon: float) -> Integers:
    """How many of a node's first windows are its child's.

    They are counted at the moment when the node should have had that many, so that they never fall and rise by one at
    most, whatever the shares do. That holds the count of a stream within one window of its share, or two of sixteen.
    """
    return np.floor(child.windows(node.time(before, horizon), horizon) + 0.5).astype(np.int64)


def _tree(shares: list[tuple[float, float]]) -> _Node:
    """The lightest two joined again and again (Huffman): few steps from the root to where most windows go."""
    nodes = [_Node(start, end, i, ()) for i, (start, end) in enumerate(shares) if start or end]
    while len(nodes) > 1:
        nodes.sort(key=lambda node: (node.start + node.end, node.stream), reverse=True)
        right, left = nodes.pop(), nodes.pop()
        nodes.append(_Node(left.start + right.start, left.end + right.end, left.stream, (left, right)))
    return nodes[0]


def permuted(position: int, size: int, key: int) -> int:
    """Where a position goes in the permutation of range(size) that a key stands for, in constant memory.

    A Feistel network on the smallest square of a power of two that holds `size`; walked again while it leads outside.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (_scrambled(_scrambled(key + turn) ^ right) & mask)
        position = left << half | right
        if position < size:
            return position


def _scrambled(value: int) -> int:
    """The finaliser of splitmix64, on one number."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def derive_seed(seed: int, *names: object) -> int:
    """A seed for one random stream, derived from the recipe's seed and the stream's name."""
    text = "\0".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
