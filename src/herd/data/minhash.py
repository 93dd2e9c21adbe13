"""MinHash: signatures of word 5-grams, bands that propose pairs, and similarities that confirm them (paper 3.1.1).

Nothing here knows where signatures are kept; `duplicates.py` runs it over a corpus by key ranges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.data.words import Hashes, Tokens, mix, ngrams

PERMUTATIONS = 126  # divisible by 6, 7, 9, 14, 18: bands of many widths use them all
SHINGLE_WORDS = 5
MAX_MISSED = 0.01  # ours: of the pairs exactly at the threshold, the share that banding may miss
DOUBT = 3.0  # standard errors of an estimate around the threshold within which the shingles themselves are compared
_SIGNATURE_SEED = 42
_BATCH_DOCUMENTS = 512
_PAIRS_AT_ONCE = 65_536

Numbers = NDArray[np.int64]
Signature = NDArray[np.uint16]


def shingles(tokens: Tokens) -> Hashes:
    """Distinct word 5-grams of a text, sorted; a text of fewer words is one shingle."""
    return np.unique(_grams(tokens))


def _grams(tokens: Tokens) -> Hashes:
    words = tokens.words
    return ngrams(words, min(SHINGLE_WORDS, len(words))) if len(words) else words


@dataclass
class Signatures:
    """Collects MinHash signatures, computed in batches."""

    _done: list[NDArray[np.uint32]] = field(default_factory=list)
    _waiting: list[Hashes] = field(default_factory=list)

    def add(self, tokens: Tokens) -> None:
        self._waiting.append(_grams(tokens))  # a minimum doesn't mind repetition, so no sort is needed
        if len(self._waiting) >= _BATCH_DOCUMENTS:
            self._compute()

    def _compute(self) -> None:
        from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  (ships no types)

        flat = np.concatenate(self._waiting)
        offsets = np.cumsum([0, *map(len, self._waiting)]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, PERMUTATIONS, _SIGNATURE_SEED)
        self._done.append(np.array(matrix.to_rows(), np.uint32))
        self._waiting = []

    def array(self) -> NDArray[np.uint32]:
        """Signatures of all documents added, shape (documents, 126)."""
        if self._waiting:
            self._compute()
        return np.concatenate(self._done) if self._done else np.empty((0, PERMUTATIONS), np.uint32)


def shortened(signatures: NDArray[np.uint32]) -> Signature:
    """Low halves of the minima, which are what is compared: two that differ have equal ones once in 65,536."""
    return signatures.astype(np.uint16)


def band_rows(threshold: float) -> int:
    """The most rows a band may have so that a pair at the threshold shares some band with probability 99%."""
    for rows in range(PERMUTATIONS, 0, -1):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MAX_MISSED:
            return rows
    return 1


def band_keys(signatures: NDArray[np.uint32], threshold: float, salt: Hashes) -> Hashes:
    """A key for each band of each document, shape (bands, documents).

    Documents with a different `salt` (their language's hash) share no key.
    """
    rows = band_rows(threshold)
    bands = PERMUTATIONS // rows
    keys = np.empty((bands, len(signatures)), np.uint64)
    for band in range(bands):
        key = salt + np.uint64(band)
        for column in range(band * rows, (band + 1) * rows):
            key = key * np.uint64(0x9E3779B97F4A7C15) + signatures[:, column] + np.uint64(1)
        keys[band] = mix(key)
    return keys


def candidates(keys: Hashes, ranks: Numbers) -> tuple[Numbers, Numbers]:
    """Pairs of positions with an equal key: each with its group's best rank, and with its neighbour in the group."""
    order = np.lexsort((ranks, keys))
    same = keys[order][1:] == keys[order][:-1]
    leaders = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
    member = np.flatnonzero(same) + 1
    far = member[leaders[member] != member - 1]  # where the neighbour isn't the leader itself
    left = np.concatenate([order[leaders[member]], order[far - 1]])
    return left, np.concatenate([order[member], order[far]])


def similarities(signatures: Any, left: Numbers, right: Numbers) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of pairs of rows of `signatures` (an array, or one mapped from a file)."""
    alike = np.empty(len(left))
    for start in range(0, len(left), _PAIRS_AT_ONCE):
        part = np.s_[start : start + _PAIRS_AT_ONCE]
        alike[part] = (signatures[left[part]] == signatures[right[part]]).mean(axis=1)
    return alike


def doubtful(alike: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    """Where an estimate is too close to the threshold to decide by itself."""
    return np.abs(alike - threshold) < DOUBT * (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5


def jaccard(shingle_sets: list[Hashes], left: Numbers, right: Numbers) -> NDArray[np.float64]:
    """Jaccard similarity of pairs of sets of shingles (each sorted and distinct)."""
    sizes = np.array([len(s) for s in shingle_sets])
    out = np.zeros(len(left))
    start = 0
    while start < len(left):  # as many pairs at once as keep the sort in a few megabytes
        weights = np.cumsum(sizes[left[start:]] + sizes[right[start:]])
        stop = start + max(1, int(np.searchsorted(weights, 1_000_000, "right")))
        pairs = range(start, stop)
        members = [shingle_sets[i] for p in pairs for i in (left[p], right[p])]
        pair_of = np.repeat(np.arange(stop - start), sizes[left[start:stop]] + sizes[right[start:stop]])
        flat = np.concatenate(members)
        order = np.lexsort((flat, pair_of))
        twice = (flat[order][1:] == flat[order][:-1]) & (pair_of[order][1:] == pair_of[order][:-1])
        common = np.bincount(pair_of[order][1:][twice], minlength=stop - start)
        union = sizes[left[start:stop]] + sizes[right[start:stop]] - common
        out[start:stop] = common / np.maximum(1, union)
        start = stop
    return out


def components(count: int, left: Numbers, right: Numbers) -> Numbers:
    """For each of `count` nodes the smallest node it is connected with by pairs (itself where it stands alone)."""
    labels = np.arange(count)
    while True:
        lower = np.minimum(labels[left], labels[right])
        before = labels.copy()
        for end in (left, right):
            np.minimum.at(labels, labels[end], lower)
            np.minimum.at(labels, end, lower)
        while not np.array_equal(labels, further := labels[labels]):
            labels = further
        if np.array_equal(labels, before):
            return labels
