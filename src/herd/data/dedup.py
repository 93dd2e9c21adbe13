"""De-duplication in three levels (paper 3.1.1): equal texts, near-duplicates by MinHash, lines that many repeat.

Everything is decided from hashes that are kept for the whole corpus (540 bytes a document, 8 a line), never from the
texts, and in an order that doesn't depend on the order of the input. Joins are sorts: numpy groups 1M documents of 14
bands in 2.6 s where engines took 4.7 to 14.5 s a tenth of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from herd.data.words import Hashes, Tokens, ngrams

PERMUTATIONS = 126  # divisible by 6, 7, 9, 14, 18: bands of many widths use them all
SHINGLE_WORDS = 5
MAX_MISSED = 0.01  # ours: of the pairs exactly at the threshold, the share that banding may miss
# Shorter lines are headings and terms (NAME, Example:, --quiet): without them, what they head describes nothing. With 3
# instead of 12, git's manual lost the names of its options.
MIN_LINE_LETTERS = 12
_SIGNATURE_SEED = 42
_BATCH_DOCUMENTS = 512


def text_digest(text: str) -> bytes:
    """SHA-256, first 16 bytes, of a text with its white space collapsed: what "the same document" means."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).digest()[:16]


def shingles(tokens: Tokens) -> Hashes:
    """Distinct word 5-grams of a text; a text of fewer words is one shingle."""
    words = tokens.words
    grams = ngrams(words, min(SHINGLE_WORDS, len(words))) if len(words) else words
    return np.unique(grams)


@dataclass
class Signatures:
    """Collects MinHash signatures, computed in batches."""

    _done: list[NDArray[np.uint32]] = field(default_factory=list)
    _waiting: list[Hashes] = field(default_factory=list)

    def add(self, tokens: Tokens) -> None:
        self._waiting.append(shingles(tokens))
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


class Duplicates(NamedTuple):
    """For each document the one kept in its place (itself where it is kept), and the similarity that decided."""

    keeper: NDArray[np.int64]
    score: NDArray[np.float64]


def exact_duplicates(digests: list[bytes], ids: list[str]) -> NDArray[np.int64]:
    """For each document the one of equal text with the smallest id."""
    first: dict[bytes, int] = {}
    for index in sorted(range(len(ids)), key=ids.__getitem__):
        first.setdefault(digests[index], index)
    return np.array([first[digest] for digest in digests], np.int64)


def near_duplicates(
    signatures: NDArray[np.uint32], lengths: NDArray[np.int64], ids: list[str], threshold: float
) -> Duplicates:
    """Clusters of documents whose estimated Jaccard similarity is at least `threshold`; the longest is kept.

    Among equally long ones the smallest id is kept. Bands propose pairs and signatures confirm them; clusters are
    their connected components, so that two members may be less alike than the threshold. `score` is a dropped
    document's similarity to the one most like it in its cluster.
    """
    count = len(ids)
    # Work in order of preference: then a cluster's keeper is its smallest number, whatever the input's order.
    order = np.array(sorted(range(count), key=lambda i: (-int(lengths[i]), ids[i])), np.int64)
    ranked = signatures[order]
    parent = np.arange(count)
    score = np.zeros(count)
    rows = band_rows(threshold)
    for start in range(0, PERMUTATIONS - rows + 1, rows):
        left, right = _candidates(ranked[:, start : start + rows])
        for part in range(0, len(left), 8192):
            a, b = left[part : part + 8192], right[part : part + 8192]
            alike = (ranked[a] == ranked[b]).mean(axis=1)
            good = alike >= threshold
            np.maximum.at(score, a[good], alike[good])
            np.maximum.at(score, b[good], alike[good])
            for x, y in zip(a[good].tolist(), b[good].tolist(), strict=True):
                _join(parent, x, y)
    roots = np.array([_root(parent, i) for i in range(count)], np.int64) if count else np.empty(0, np.int64)
    keeper, scores = np.empty(count, np.int64), np.empty(count)
    keeper[order], scores[order] = order[roots], score
    return Duplicates(keeper, scores)


def band_rows(threshold: float) -> int:
    """The most rows a band may have so that a pair at the threshold shares some band with probability 99%."""
    for rows in range(PERMUTATIONS, 0, -1):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MAX_MISSED:
            return rows
    return 1


def _candidates(band: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of documents with an equal band: each with its group's best, and with its neighbour in the group."""
    keys = np.zeros(len(band), np.uint64)
    for column in range(band.shape[1]):
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + band[:, column] + np.uint64(1)
    order = np.argsort(keys, kind="stable")  # stable: within a group in order of preference
    same = keys[order][1:] == keys[order][:-1]
    leaders = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
    member = np.flatnonzero(same) + 1
    left = np.concatenate([order[leaders[member]], order[member - 1]])
    right = np.concatenate([order[member], order[member]])
    return left, right


def _root(parent: NDArray[np.int64], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = int(parent[node])
    return node


def _join(parent: NDArray[np.int64], a: int, b: int) -> None:
    a, b = _root(parent, a), _root(parent, b)
    parent[max(a, b)] = min(a, b)


@dataclass
class LineCounter:
    """Counts in how many documents each line stands, and takes out those that stand in too many.

    A line is its letters: case, digits and punctuation don't count (as in ccNet). Verbatim and indented lines are
    left alone, since a missing line breaks code. One bucket holds all documents; the paper's holds 30M.
    """

    _lines: list[Hashes] = field(default_factory=list)
    _repeated: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))

    def add(self, tokens: Tokens, verbatim: list[Any]) -> None:
        hashes, eligible = _eligible_lines(tokens, verbatim)
        self._lines.append(np.unique(hashes[eligible]))

    def close(self, repeats: int) -> None:
        """After the last document: a line in more than `repeats` documents is boilerplate."""
        lines = np.sort(np.concatenate(self._lines)) if self._lines else self._repeated
        self._lines = []
        starts = np.flatnonzero(np.concatenate([[True], lines[1:] != lines[:-1]])) if len(lines) else np.empty(0, int)
        self._repeated = lines[starts][np.diff(np.append(starts, len(lines))) > repeats]

    def clean(self, text: str, tokens: Tokens, verbatim: list[Any]) -> tuple[str, int]:
        """The text without its boilerplate lines, and how many those were."""
        hashes, eligible = _eligible_lines(tokens, verbatim)
        bad = eligible & np.isin(hashes, self._repeated)
        count = int(bad.sum())
        if not count:
            return text, 0
        kept = [line for line, drop in zip(text.split("\n"), bad.tolist(), strict=True) if not drop]
        return _squeezed(kept), count


def _eligible_lines(tokens: Tokens, verbatim: list[Any]) -> tuple[Hashes, NDArray[np.bool_]]:
    hashes, letters = tokens.line_letters
    starts = tokens.line_edges[0]
    first = tokens.data[np.minimum(starts, max(0, len(tokens.data) - 1))] if len(tokens.data) else starts
    eligible = (letters >= MIN_LINE_LETTERS) & (first != 32) & (first != 9)
    for begin, end in verbatim:
        eligible[begin:end] = False
    return hashes, eligible


def _squeezed(lines: list[str]) -> str:
    """Lines joined, with runs of three and more line breaks that removed lines left behind made two."""
    out: list[str] = []
    blank = 0
    for line in lines:
        blank = 0 if line.strip() else blank + 1
        if blank < 2 and (out or not blank):
            out.append(line)
    return "\n".join(out)
