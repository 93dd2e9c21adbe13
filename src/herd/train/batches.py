"""Batches of post-training: dialogs, preference pairs and ranked responses, padded at the end.

Padding is never told by a token's id (in many vocabularies it is the end token's): what is not trained has the
target IGNORED.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

IGNORED = -1
LENGTH_STEP = 128  # rows are padded to multiples of this: buffers of few sizes find places that others left
UNLIMITED = 1 << 40  # tokens of a micro-batch, padding included
PADDING = 0  # any id: nothing attends to it and nothing is asked of it


@dataclass(frozen=True)
class Row:
    """Token ids of one sequence and which of them are trained; `scored` of those count in a preference."""

    ids: Sequence[int]
    trained: Sequence[bool]
    scored: Sequence[bool] | None = None


@dataclass(frozen=True)
class DialogBatch:
    """Inputs and the ids that follow them, (rows, tokens) int64; IGNORED where nothing is trained."""

    inputs: np.ndarray
    targets: np.ndarray
    micro_tokens: int = field(default=UNLIMITED, kw_only=True)

    @property
    def count(self) -> int:
        return int((self.targets != IGNORED).sum())

    def split(self, rows: int) -> Iterator[DialogBatch]:
        """Micro-batches, rows of like length together, each only as long as its longest row."""
        lengths = _lengths(self.targets)
        order = np.argsort(lengths, kind="stable")
        for cut, end in _micro(lengths[order], rows, self.micro_tokens):
            yield DialogBatch(self.inputs[order[cut], :end], self.targets[order[cut], :end])


@dataclass(frozen=True)
class PreferenceBatch(DialogBatch):
    """Rows in pairs, the chosen response first. `reference` has the reference's log-probability of each row."""

    scored: np.ndarray
    reference: np.ndarray

    @property
    def count(self) -> int:
        return len(self.inputs) // 2

    def split(self, rows: int) -> Iterator[PreferenceBatch]:
        """Micro-batches of at most so many pairs."""
        lengths = _lengths(self.targets).reshape(-1, 2).max(-1)
        for pairs, end in _micro(lengths, rows, self.micro_tokens // 2):
            cut = slice(2 * pairs.start, 2 * pairs.stop)
            yield PreferenceBatch(
                self.inputs[cut, :end], self.targets[cut, :end], self.scored[cut, :end], self.reference[cut]
            )


@dataclass(frozen=True)
class RankedBatch:
    """A prompt and its responses in one row; `ends` are the positions of the responses' last tokens, best first."""

    inputs: np.ndarray
    ends: np.ndarray
    micro_tokens: int = field(default=UNLIMITED, kw_only=True)

    @property
    def count(self) -> int:
        return len(self.inputs)

    def split(self, rows: int) -> Iterator[RankedBatch]:
        for cut, end in _micro(self.ends.max(-1) + 1, rows, self.micro_tokens):
            yield RankedBatch(self.inputs[cut, :end], self.ends[cut])


def dialog_batch(rows: Sequence[Row]) -> DialogBatch:
    """Rows padded to the longest. Each row needs two tokens at least."""
    inputs, targets, _ = _pad(rows)
    return DialogBatch(inputs, targets)


def preference_batch(pairs: Sequence[tuple[Row, Row]], reference: np.ndarray) -> PreferenceBatch:
    """Pairs of (chosen, rejected); `reference` is (pairs, 2) float32: sums over the scored tokens."""
    inputs, targets, scored = _pad([row for pair in pairs for row in pair])
    return PreferenceBatch(inputs, targets, scored, reference.reshape(-1))


def ranked_batch(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]], seed: int
) -> RankedBatch:
    """Each prompt with its responses (best first) behind it in an order drawn from the seed (A6)."""
    rows, ends = [], []
    for index, (prompt, ranked) in enumerate(zip(prompts, responses, strict=True)):
        row, where = list(prompt), [0] * len(ranked)
        for place in np.random.default_rng([seed, index]).permutation(len(ranked)):
            row += ranked[place]
            where[place] = len(row) - 1
        rows.append(row)
        ends.append(where)
    width = _rounded(max(map(len, rows)))
    inputs = np.array([row + [PADDING] * (width - len(row)) for row in rows], dtype=np.int64)
    return RankedBatch(inputs, np.array(ends, dtype=np.int64))


def _pad(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = (len(rows), _rounded(max(len(row.ids) for row in rows) - 1))
    inputs, targets = np.full(shape, PADDING, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    scored = np.zeros(shape, dtype=bool)
    for index, row in enumerate(rows):
        ids, trained = np.array(row.ids), np.array(row.trained, dtype=bool)
        inputs[index, : len(ids) - 1] = ids[:-1]
        targets[index, : len(ids) - 1] = np.where(trained[1:], ids[1:], IGNORED)
        counted = trained if row.scored is None else trained & np.array(row.scored, dtype=bool)
        scored[index, : len(ids) - 1] = counted[1:]
    return inputs, targets, scored


def _micro(lengths: np.ndarray, rows: int, tokens: int) -> Iterator[tuple[slice, int]]:
    """Runs of neighbours, and the length each is padded to: so many rows or tokens at most, and one row at least."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        more = _rounded(lengths[start : stop + 1].max())
        if stop == len(lengths) or stop - start == rows or (stop + 1 - start) * more > tokens:
            yield slice(start, stop), _rounded(lengths[start:stop].max())
            start = stop


def _rounded(tokens: int) -> int:
    """Up to a multiple of LENGTH_STEP; the short rows of small networks stay as they are."""
    return int(tokens) if tokens <= LENGTH_STEP else -(-int(tokens) // LENGTH_STEP) * LENGTH_STEP


def _lengths(targets: np.ndarray) -> np.ndarray:
    """Of each row, how many positions there are up to the last trained one (at least one)."""
    trained = targets != IGNORED
    return np.where(trained.any(1), trained.shape[1] - trained[:, ::-1].argmax(1), 1)
