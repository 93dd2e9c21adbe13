"""The second pass over a part: what was decided by comparing takes effect, and what is left is judged by rules."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from herd.data import duplicates, heuristics, outliers
from herd.data.cleaning import EXTRACTED, TEXT_KINDS, dirty_words, salted_lines
from herd.data.decontaminate import Benchmarks
from herd.data.documents import Writer, read_rows
from herd.data.duplicates import SITE, Corpus
from herd.data.funnel import Ledger
from herd.data.lines import without_repeated
from herd.data.quality import Sample, lowest, sample_of
from herd.data.settings import CurateSettings
from herd.data.word_lists import MAX_PER_1000, is_dirty, word_count
from herd.data.words import Hashes, Tokens, tokens

_SAMPLE_LINES = 3


class Filtering(NamedTuple):
    """A task: filter part `number`. `sites` tells why a site goes: rule, score and threshold by its key."""

    corpus: Corpus
    number: int
    settings: CurateSettings
    line_buckets: int
    sites: dict[int, tuple[str, float, float]]


def apply(task: Filtering) -> dict[str, Any]:
    """Drop copies, take repeated lines out, judge by rules; returns books and where the words' counts are."""
    name, folder = task.corpus.names[task.number], task.corpus.folder
    judge = _Judge(task)
    counts: dict[str, NDArray[np.int64]] = {}
    samples: list[Sample] = []
    texts: set[str] = set()
    with (
        Ledger(folder, f"{name}.filter") as ledger,
        Writer(folder / f"{name}.filtered.parquet", EXTRACTED, weigh="text", compression="lz4") as writer,
    ):
        for number, row in enumerate(read_rows(folder / f"{name}.extracted.parquet"), task.corpus.firsts[task.number]):
            if judge.is_copy(row, number, ledger) or (done := judge.judge(row, number, ledger)) is None:
                continue
            outliers.count_bins(counts, corpus_of(row), done)
            writer.write(row)
            samples.append(sample_of(row["id"], row["source"], row["path"], row["url"], row["language"], done))
            if row["kind"] in TEXT_KINDS:
                texts.add(row["id"])
        books = ledger.books()
    np.savez(folder / f"{name}.words.npz", **counts)  # pyright: ignore[reportArgumentType]
    np.save(folder / f"{name}.benchmarks.npy", np.concatenate([np.empty(0, np.uint64), *judge.found]))
    chosen = lowest(samples, task.settings.data.quality.reference, task.settings.seed)
    save_samples(folder / f"{name}.learn.npz", chosen, texts)
    return {"books": books, "documents": len(samples)}


def corpus_of(row: dict[str, Any]) -> str:
    """What a document's words are compared with: all of its kind and language."""
    return f"{row['kind']} {row['language']}"


def save_samples(path: Path, samples: Sequence[Sample], texts: Collection[str]) -> None:
    """Samples as arrays, for classifiers to learn from, and which of them are text rather than code or tables."""
    facts = [[*sample[:4], sample.id in texts, len(sample.features)] for sample in samples]
    flat = np.concatenate([np.empty(0, np.uint32), *(sample.features for sample in samples)])
    np.savez(path, facts=np.array(json.dumps(facts)), features=flat.astype(np.uint32))


def load_samples(paths: Iterable[Path]) -> Iterator[tuple[Sample, bool]]:
    """Samples of all parts, each with whether it is text."""
    for path in paths:
        with np.load(path) as arrays:
            facts, flat = json.loads(str(arrays["facts"])), arrays["features"]
        start = 0
        for identity, source, origin, spoken, text, length in facts:
            yield Sample(identity, source, origin, spoken, flat[start : start + length]), text
            start += length


def forget_benchmarks() -> None:
    """Read benchmarks anew from now on: files may have changed since another run of this process read them."""
    _loaded.cache_clear()


@cache
def _loaded(paths: tuple[str, ...], base: Path, ngram: int) -> Benchmarks:
    return Benchmarks.load(paths, base, ngram)


def benchmarks_of(settings: CurateSettings) -> Benchmarks | None:
    """The benchmarks that the recipe names, where it names some; read once a process."""
    rules = settings.data.decontamination
    return _loaded(tuple(rules.paths), settings.base, rules.ngram) if rules is not None else None


class _Judge:
    """The steps on one document, with the slices of the decisions that concern the part."""

    def __init__(self, task: Filtering) -> None:
        corpus = task.corpus
        self._task, self._data = task, task.settings.data
        self._fate, self._keeper, self._score = (corpus.array(name) for name in ("fate", "keeper", "score"))
        self._ids, self._sites = corpus.array("ids"), corpus.array("sites")
        self._repeated = corpus.array("repeated")
        self._dirty = dirty_words(task.settings)
        rules = self._data.decontamination
        self._benchmarks = benchmarks_of(task.settings) if rules is not None and rules.common_documents else None
        self.found: list[Hashes] = []

    def is_copy(self, row: dict[str, Any], number: int, ledger: Ledger) -> bool:
        """Enter the steps that compare documents up to the one that drops it, if one does."""
        fate = int(self._fate[number])
        for step_fate, step in duplicates.STEP_OF.items():
            ledger.enter(step, row["bytes"])
            if fate != step_fate:
                continue
            if fate == SITE:
                rule, score, threshold = self._task.sites[int(self._sites[number])]
                ledger.drop(row, step, rule, score, threshold, row["bytes"], row["text"])
            else:
                limit = self._data.near_duplicate_similarity if fate == duplicates.NEAR else 1.0
                kept = f"{int(self._ids[self._keeper[number]]):016x}"
                rule, score = duplicates.RULE_OF[fate], float(self._score[number])
                ledger.drop(row, step, rule, score, limit, row["bytes"], row["text"], kept)
            return True
        return False

    def judge(self, row: dict[str, Any], number: int, ledger: Ledger) -> Tokens | None:
        """Take lines out of a document and judge the rest; None where it is dropped."""
        parts = tokens(row["text"])
        ledger.enter("lines", row["bytes"])
        if row["kind"] in TEXT_KINDS:
            parts = self._without_lines(row, parts, number, ledger)
        ledger.enter("heuristics", row["bytes"])
        data = self._data
        bad = heuristics.judge(
            row["text"],
            parts,
            row["kind"],
            data.min_document_bytes,
            data.max_document_bytes,
            row["page"],
            row["language"],
        )
        bad = bad or self._dirty_words(row, parts)
        if bad is not None:
            return ledger.drop(row, "heuristics", bad.rule, bad.score, bad.threshold, row["bytes"], row["text"])
        ledger.show_passed(row, "heuristics", row["text"])
        if self._benchmarks is not None:
            self.found.append(self._benchmarks.found_in(parts))
        return parts

    def _dirty_words(self, row: dict[str, Any], parts: Tokens) -> heuristics.Verdict | None:
        if self._dirty is None or row["kind"] not in TEXT_KINDS:
            return None
        count, words = row["dirty"], word_count(parts, row["text"], row["language"])
        share = 1000 * count / max(1, words)
        return heuristics.Verdict("dirty_words", share, MAX_PER_1000) if is_dirty(count, words) else None

    def _without_lines(self, row: dict[str, Any], parts: Tokens, number: int, ledger: Ledger) -> Tokens:
        bucket = int(self._ids[number]) % self._task.line_buckets
        salt = int(salted_lines(np.zeros(1, np.uint64), row["language"], bucket)[0])
        row["text"], removed = without_repeated(row["text"], parts, row["verbatim"], self._repeated, salt)
        if not removed:
            return parts
        parts = tokens(row["text"])
        sample = "\n".join(line[:200] for line in removed[:_SAMPLE_LINES])
        ledger.change(row, "lines", "repeated_line", len(removed), row["bytes"] - len(parts.data), sample)
        row["bytes"] = len(parts.data)
        if self._dirty is not None:
            row["dirty"] = self._dirty.count(parts, row["text"], row["language"])
        return parts
