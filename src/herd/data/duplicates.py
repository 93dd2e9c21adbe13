"""What is decided about a document by looking at others: whole sites, URLs, equal texts, near-duplicates, lines.

Every decision is made by key range over the runs that the first pass wrote, in an order that doesn't depend on the
parts: of copies the longest is kept, of equally long ones the smallest id. The outcome is one array a question, a
number for each document, which the second pass maps and reads its slice of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from herd.data import minhash
from herd.data.cleaning import FACTS
from herd.data.engine import Crew
from herd.data.exchange import join_arrays, ranges, read_range
from herd.data.minhash import Numbers
from herd.data.words import distinct
from herd.recipe_data import Data

TEXT_AT_ONCE = 256_000_000  # bytes of doubtful documents whose shingles, about as many bytes, are held

# Fates of a document, by the step that drops it.
KEPT, SITE, URL, EXACT, NEAR = range(5)
STEP_OF = {SITE: "domains", URL: "url", EXACT: "exact", NEAR: "near"}
RULE_OF = {URL: "older_version", EXACT: "same_text", NEAR: "minhash"}


class Corpus(NamedTuple):
    """The parts of a corpus after the first pass: their files, and the number of each one's first document."""

    folder: Path
    names: tuple[str, ...]
    firsts: tuple[int, ...]
    documents: int

    def runs(self, kind: str) -> list[tuple[Path, int]]:
        return [(self.folder / f"{name}.{kind}", first) for name, first in zip(self.names, self.firsts, strict=True)]

    def array(self, name: str) -> Any:
        """An array over all documents, mapped."""
        return np.load(self.folder / f"all.{name}.npy", mmap_mode="r")

    def save(self, name: str, array: NDArray[Any]) -> None:
        np.save(self.folder / f"all.{name}.npy", array)

    @property
    def ranges(self) -> int:
        return ranges(self.documents)


class Fates(NamedTuple):
    """For each document: its fate, the number of the document kept in its place (its own), and the similarity."""

    fate: NDArray[np.int8]
    keeper: Numbers
    score: NDArray[np.float64]


def join_facts(folder: Path, names: Sequence[str], documents: Sequence[int]) -> Corpus:
    """Put the parts' facts together, and rank the documents: longest first, equally long ones by id."""
    for name in FACTS:
        join_arrays([folder / f"{part}.{name}.npy" for part in names], folder / f"all.{name}.npy")
    firsts = np.cumsum([0, *documents])
    corpus = Corpus(folder, tuple(names), tuple(int(first) for first in firsts[:-1]), int(firsts[-1]))
    ranks = np.empty(corpus.documents, np.int64)
    ranks[np.lexsort((corpus.array("ids"), -corpus.array("bytes")))] = np.arange(corpus.documents)
    corpus.save("ranks", ranks)
    return corpus


def decide(corpus: Corpus, data: Data, bad_sites: NDArray[np.uint64], crew: Crew) -> Fates:
    """The fate of every document, level after level: what one level drops, the next doesn't see."""
    fates = Fates(
        np.zeros(corpus.documents, np.int8), np.arange(corpus.documents), np.zeros(corpus.documents, np.float64)
    )
    fates.fate[np.isin(corpus.array("sites"), bad_sites)] = SITE
    for fate, title, function in ((URL, "same address", newest_of_url), (EXACT, "equal texts", best_of_text)):
        corpus.save("fate", fates.fate)
        for dropped, kept in _each_range(corpus, crew, title, function):
            fates.fate[dropped], fates.keeper[dropped], fates.score[dropped] = fate, kept, 1.0
    corpus.save("fate", fates.fate)
    _near(corpus, data.near_duplicate_similarity, crew, fates)
    # A copy of a document that a later level dropped is a copy of what that one is a copy of.
    while not np.array_equal(fates.keeper, further := fates.keeper[fates.keeper]):
        fates.keeper[:] = further
    corpus.save("fate", fates.fate)
    corpus.save("keeper", fates.keeper)
    corpus.save("score", fates.score)
    return fates


class _Range(NamedTuple):
    """A task: a range of keys (of one band of signatures, or of lines counted up to `repeats`)."""

    corpus: Corpus
    range: int
    ranges: int
    out: Path
    band: int = 0
    threshold: float = 0.0
    repeats: int = 0


def _each_range(corpus: Corpus, crew: Crew, title: str, function: Callable[[_Range], Any]) -> list[list[Any]]:
    """Results of a function over all ranges: arrays, by way of files."""
    work = corpus.folder / title.replace(" ", "-")
    count = corpus.ranges
    tasks = [(f"{i:05}", _Range(corpus, i, count, work / f"{i:05}.npz")) for i in range(count)]
    return list(_arrays(work, crew.run(title, function, tasks, work)))


def _arrays(folder: Path, files: Sequence[str]) -> Iterator[list[Any]]:
    for file in files:
        with np.load(folder / file) as arrays:
            yield [arrays[name] for name in arrays.files]


def _save(task: _Range, *arrays: NDArray[Any]) -> str:
    np.savez(task.out, *arrays)
    return task.out.name


def newest_of_url(task: _Range) -> str:
    """Of documents of one URL the most recent is kept (paper 3.1.1), of equally recent ones the best ranked."""
    keys, numbers = _undecided(task, "url")
    days, ranks = (task.corpus.array(name)[numbers] for name in ("days", "ranks"))
    return _save(task, *_all_but_first(numbers, [keys], [-days, ranks]))


def best_of_text(task: _Range) -> str:
    """Of documents of equal text the best ranked is kept."""
    keys, numbers = _undecided(task, "exact")
    ranks, digests = (task.corpus.array(name)[numbers] for name in ("ranks", "digests"))
    return _save(task, *_all_but_first(numbers, [keys, digests[:, 1]], [ranks]))


def _undecided(task: _Range, kind: str) -> tuple[Any, Numbers]:
    keys, numbers = read_range(task.corpus.runs(kind), task.range, task.ranges)
    left = task.corpus.array("fate")[numbers] == KEPT
    return keys[left], numbers[left]


def _all_but_first(
    numbers: Numbers, group: list[NDArray[Any]], preference: list[NDArray[Any]]
) -> tuple[Numbers, Numbers]:
    """Documents that are not the first of their group by order of preference, and that first for each."""
    order = np.lexsort([*reversed(preference), *group])  # the last key is the primary one
    same = np.ones(max(0, len(order) - 1), np.bool_)
    for column in group:
        same &= column[order][1:] == column[order][:-1]
    leaders = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
    rest = np.flatnonzero(same) + 1
    return numbers[order[rest]], numbers[order[leaders[rest]]]


def _near(corpus: Corpus, threshold: float, crew: Crew, fates: Fates) -> None:
    """Connected components of pairs at least `threshold` alike: two members may be less alike than that."""
    bands = minhash.PERMUTATIONS // minhash.band_rows(threshold)
    work = corpus.folder / "near"
    tasks = [
        (f"{band:03}-{i:05}", _Range(corpus, i, corpus.ranges, work / f"{band:03}-{i:05}.npz", band, threshold))
        for band in range(bands)
        for i in range(corpus.ranges)
    ]
    left, right, alike = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    for a, b, similarity in _arrays(work, crew.run("near-duplicates", alike_in_band, tasks, work)):
        pairs = (np.concatenate([left, a]), np.concatenate([right, b]), np.concatenate([alike, similarity]))
        left, right, alike = _distinct(*pairs)  # at once: many bands propose the same
    sure = alike >= threshold
    doubt = minhash.doubtful(alike, threshold)
    clear = sure & ~doubt
    labels = minhash.components(corpus.documents, left[clear], right[clear])
    open_pairs = doubt & (labels[left] != labels[right])  # the others are in one cluster anyway
    alike[open_pairs] = _confirmed(corpus, left[open_pairs], right[open_pairs], crew)
    good = clear | (doubt & (alike >= threshold))
    ranks = corpus.array("ranks")
    by_rank = np.argsort(ranks)
    labels = by_rank[minhash.components(corpus.documents, ranks[left[good]], ranks[right[good]])[ranks]]
    copies = labels != np.arange(corpus.documents)
    best = np.zeros(corpus.documents)
    for end in (left, right):
        np.maximum.at(best, end[good], alike[good])
    fates.fate[copies], fates.keeper[copies], fates.score[copies] = NEAR, labels[copies], best[copies]


def alike_in_band(task: _Range) -> str:
    """Pairs that share a key of one band and may be alike enough, with their estimated similarity."""
    keys, numbers = _undecided(task, f"band{task.band}")
    ranks, signatures = task.corpus.array("ranks"), task.corpus.array("signatures")
    left, right = (numbers[ends] for ends in minhash.candidates(keys, ranks[numbers]))
    alike = minhash.similarities(signatures, left, right)
    useful = (alike >= task.threshold) | minhash.doubtful(alike, task.threshold)
    return _save(task, left[useful], right[useful], alike[useful])


def _distinct(
    left: Numbers, right: Numbers, alike: NDArray[np.float64]
) -> tuple[Numbers, Numbers, NDArray[np.float64]]:
    """Each pair once."""
    low, high = np.minimum(left, right), np.maximum(left, right)
    order = np.lexsort((high, low))
    low, high, alike = low[order], high[order], alike[order]
    new = np.ones(len(low), np.bool_)
    new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return low[new], high[new], alike[new]


class _Reading(NamedTuple):
    """A task: the shingles of some documents of a part, by their rows in it (sorted)."""

    extracted: Path
    rows: tuple[int, ...]
    out: Path


def _confirmed(corpus: Corpus, left: Numbers, right: Numbers, crew: Crew) -> NDArray[np.float64]:
    """Similarity of pairs by their shingles themselves, which are read from their parts' texts.

    Pairs are taken in batches whose texts are no more than TEXT_AT_ONCE.
    """
    out, size = np.empty(len(left)), corpus.array("bytes")
    batch_of = np.cumsum(size[left] + size[right]) // TEXT_AT_ONCE
    for batch in np.unique(batch_of):
        own = batch_of == batch
        out[own] = _by_shingles(corpus, left[own], right[own], crew, corpus.folder / f"shingles{batch}")
    return out


def _by_shingles(corpus: Corpus, left: Numbers, right: Numbers, crew: Crew, work: Path) -> NDArray[np.float64]:
    wanted = distinct(np.concatenate([left, right]))
    bounds = np.searchsorted(wanted, [*corpus.firsts, corpus.documents])
    tasks = []
    for part, name in enumerate(corpus.names):
        rows = wanted[bounds[part] : bounds[part + 1]] - corpus.firsts[part]
        if len(rows):
            extracted = corpus.folder / f"{name}.extracted.parquet"
            tasks.append((name, _Reading(extracted, tuple(rows.tolist()), work / f"{name}.npz")))
    sets: list[NDArray[np.uint64]] = []
    for flat, lengths in _arrays(work, crew.run("shingles of doubtful pairs", shingles_of, tasks, work)):
        sets += np.split(flat, np.cumsum(lengths)[:-1])
    return minhash.jaccard(sets, np.searchsorted(wanted, left), np.searchsorted(wanted, right))


def shingles_of(task: _Reading) -> str:
    """Shingles of documents, end to end, and the number of each one's."""
    found: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
    rows, first = np.array(task.rows), 0
    with pq.ParquetFile(task.extracted) as file:
        for group in range(file.num_row_groups):
            texts = file.read_row_group(group, ["text"], use_threads=False)["text"]
            own = rows[(rows >= first) & (rows < first + len(texts))] - first
            first += len(texts)
            if len(own):
                found.append(minhash.shingles_of_all(texts.take(pa.array(own)).to_pylist()))
    np.savez(task.out, *(np.concatenate(columns) for columns in zip(*found, strict=True)))
    return task.out.name


def repeated_lines(corpus: Corpus, keys: int, repeats: int, crew: Crew) -> NDArray[np.uint64]:
    """Keys of lines that stand in more than `repeats` of the documents kept so far, sorted."""
    work, count = corpus.folder / "lines", ranges(keys)
    tasks = [(f"{i:05}", _Range(corpus, i, count, work / f"{i:05}.npz", repeats=repeats)) for i in range(count)]
    return np.concatenate([array for (array,) in _arrays(work, crew.run("repeated lines", often, tasks, work))])


def often(task: _Range) -> str:
    """Keys of a range that stand in more than `repeats` documents."""
    keys = np.sort(_undecided(task, "lines")[0])
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, np.int64)
    return _save(task, keys[starts][np.diff(np.append(starts, len(keys))) > task.repeats])
