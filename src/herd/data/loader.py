"""Which tokens a step trains on: a pure function of seed and step, so that a run resumes at any step in constant time.

Sequences are windows of context + 1 tokens cut from the streams; a window's kind is drawn by the streams' weights,
and within a kind every window is used once before any is used again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from herd.console import HerdError, warn


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

    `weights` multiplies a kind's share of the tokens (1 where not named), as annealing up-samples good sources.
    A stream of less than one window is left out with a warning. Raises HerdError where that is all of them, or a
    weight names no kind there is.
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
    ) -> None:
        self.context, self.sequences, self.bos_id = context, sequences, bos_id
        self._streams = {kind: stream for kind, stream in sorted(streams.items()) if len(stream) > context}
        if not self._streams:
            raise HerdError(f"no stream of tokens is longer than the context of {context} tokens: add text")
        if short := sorted(set(streams) - set(self._streams)):
            warn(f"less than one window of {context} tokens of {', '.join(short)}: not trained on")
        if unknown := set(weights or {}) - set(streams):
            raise HerdError(
                f"weights name kinds of document that are not there: {sorted(unknown)}; there are {sorted(streams)}"
            )
        self._kinds = list(self._streams)
        sizes = np.array([len(self._streams[k]) * (weights or {}).get(k, 1.0) for k in self._kinds])
        draw = np.random.default_rng([seed, 0])
        self._choice = draw.choice(len(self._kinds), size=steps * sequences, p=sizes / sizes.sum()).astype(np.int8)
        self._turn = np.zeros(len(self._choice), dtype=np.int64)  # how many windows of its kind came before
        for index in range(len(self._kinds)):
            chosen = self._choice == index
            self._turn[chosen] = np.arange(chosen.sum())
        self._seed = seed
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        rows = range(step * self.sequences, (step + 1) * self.sequences)
        windows = np.stack([self._window(int(self._choice[row]), int(self._turn[row])) for row in rows]).astype(
            np.int64
        )
        inputs = windows[:, :-1]
        return Batch(inputs, windows[:, 1:], np.cumsum(inputs == self.bos_id, axis=1))

    def _window(self, kind: int, turn: int) -> np.ndarray:
        stream = self._streams[self._kinds[kind]]
        count = (len(stream) - 1) // self.context
        epoch, position = divmod(turn, count)
        if (kind, epoch) not in self._orders:
            self._orders[kind, epoch] = np.random.default_rng([self._seed, 1, kind, epoch]).permutation(count)
        start = int(self._orders[kind, epoch][position]) * self.context
        return stream[start : start + self.context + 1]


def derive_seed(seed: int, *names: object) -> int:
    """A seed for one random stream, derived from the recipe's seed and the stream's name."""
    text = "\0".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
