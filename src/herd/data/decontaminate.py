"""Benchmarks are kept out of the training text: documents that share a run of 13 words with one of their items go.

Words are compared without case and punctuation, so an item is found in another layout too (GPT-3's rule, Brown et al.
2020, appendix C; the paper excludes benchmark training sets from its annealing data, 3.1.3). All fields of an item
count as texts of their own: questions, answers, choices. A text too short for a run, but of eight words or more, is
looked for whole; shorter ones say nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from herd.artifact import file_sha256
from herd.console import HerdError, one_line
from herd.data.documents import read_rows
from herd.data.verdict import Verdict
from herd.data.words import Hashes, Tokens, ngrams, tokens

SHORTEST_WORDS = 8
TEXTS = (".txt", ".md", ".rst")
LINES = (".jsonl", ".ndjson")
MAX_FILE_BYTES = 2_000_000_000
MAX_LINE_BYTES = 16_000_000
MAX_DEPTH = 8  # of lists and objects inside an item
SIEVE_BITS = 22  # 4 MB; tells nearly all n-grams of clean text apart from a benchmark's in one look


class Hits(NamedTuple):
    """What a document shares with benchmarks: n-grams found, and how many of each benchmark (an n-gram that is in two
    counts for both)."""

    total: int
    benchmarks: dict[str, int]


@dataclass(frozen=True)
class _Table:
    """N-grams of one length: sorted hashes, each with the index of its benchmark, and a sieve of their low bits."""

    hashes: Hashes
    owners: np.ndarray
    sieve: np.ndarray = field(repr=False)

    def positions(self, grams: Hashes) -> np.ndarray:
        """Where in `grams` there is an n-gram of the table."""
        maybe = np.flatnonzero(self.sieve[grams & np.uint64((1 << SIEVE_BITS) - 1)])
        at = np.searchsorted(self.hashes, grams[maybe])
        at[at == len(self.hashes)] = 0
        return maybe[self.hashes[at] == grams[maybe]]


@dataclass(frozen=True)
class Benchmarks:
    """The n-grams of all benchmarks, by length in words. `names` are the files' names without their endings."""

    names: tuple[str, ...]
    tables: dict[int, _Table]

    @staticmethod
    def load(paths: Iterable[str], base: Path, ngram: int = 13) -> Benchmarks:
        """Read files and folders (relative to `base`) of JSONL, JSON, Parquet and text.

        Raises HerdError naming a path that is missing, of another kind, damaged (with the line), or holds no text of
        eight words.
        """
        names: list[str] = []
        grams: dict[int, list[tuple[Hashes, int]]] = {}
        for path in benchmark_files(paths, base):
            name = path.name.removesuffix(".gz").rsplit(".", 1)[0]
            if name not in names:
                names.append(name)
            found = False
            for text in _texts(path):
                words = tokens(text).words
                size = min(ngram, len(words))
                if size >= min(SHORTEST_WORDS, ngram):
                    grams.setdefault(size, []).append((np.unique(ngrams(words, size)), names.index(name)))
                    found = True
            if not found:
                raise HerdError(f"{path}: no text of {SHORTEST_WORDS} words or more, so no benchmark to keep out")
        return Benchmarks(tuple(names), {size: _table(parts) for size, parts in sorted(grams.items())})

    @property
    def count(self) -> int:
        """Distinct n-grams, all lengths together."""
        return sum(len(np.unique(table.hashes)) for table in self.tables.values())

    def hits(self, document: Tokens) -> Hits:
        """What a document shares with the benchmarks."""
        count = 0
        owners: Counter[str] = Counter()
        for size, table in self.tables.items():
            grams = ngrams(document.words, size)
            positions = table.positions(grams)
            if not len(positions):
                continue
            count += len(positions)
            begins, ends = (np.searchsorted(table.hashes, grams[positions], side) for side in ("left", "right"))
            for begin, end in zip(begins, ends, strict=True):
                owners.update(self.names[owner] for owner in table.owners[begin:end])
        return Hits(count, dict(sorted(owners.items())))

    def judge(self, document: Tokens, max_hits: int = 0) -> Verdict | None:
        """The verdict `benchmark:NAME` on a document of more than `max_hits` n-grams; NAME has most. Else None."""
        found = self.hits(document)
        if found.total <= max_hits:
            return None
        name = max(found.benchmarks, key=lambda name: (found.benchmarks[name], name))
        return Verdict(f"benchmark:{name}", found.total, max_hits)

    def found_in(self, document: Tokens) -> Hashes:
        """The benchmark n-grams of a document, each once: what `common` counts."""
        grams = ((table, ngrams(document.words, size)) for size, table in self.tables.items())
        found = [some[table.positions(some)] for table, some in grams]
        return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))

    def without(self, hashes: Hashes) -> Benchmarks:
        """The benchmarks less some n-grams, such as those that are `common`."""
        kept = {}
        for size, table in self.tables.items():
            keep = ~np.isin(table.hashes, hashes)
            if keep.any():
                kept[size] = _Table(table.hashes[keep], table.owners[keep], _sieve(table.hashes[keep]))
        return Benchmarks(self.names, kept)


def common(found: Iterable[Hashes], documents: int) -> Hashes:
    """N-grams in more than so many documents, from what `Benchmarks.found_in` gave for each: phrases like a licence's,
    which are in a benchmark by chance. Counts only n-grams of benchmarks, so it needs little memory."""
    counts: Counter[int] = Counter()
    for hashes in found:
        counts.update(hashes.tolist())
    return np.array(sorted(gram for gram, count in counts.items() if count > documents), np.uint64)


def fingerprint(paths: Iterable[str], base: Path) -> dict[str, str]:
    """Digest of each benchmark file by its name, for the key of what depends on them."""
    files = benchmark_files(paths, base)
    digests = [f"{path.name} {file_sha256(path)}" for path in files]
    return {"benchmarks": hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()}


def benchmark_files(paths: Iterable[str], base: Path) -> list[Path]:
    """The files that paths name, those of folders sorted. Raises HerdError naming a path that gives none."""
    files = []
    for given in paths:
        path = base / given
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _ending(p))
            if not inside:
                raise HerdError(f"data.decontamination.paths: {path} has no file of JSONL, JSON, Parquet or text")
            files += inside
        elif not path.is_file():
            raise HerdError(f"data.decontamination.paths: {path} is not there")
        elif not _ending(path):
            raise HerdError(f"data.decontamination.paths: {path} is not JSONL, JSON, Parquet or text")
        else:
            files.append(path)
    for path in files:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise HerdError(f"data.decontamination.paths: {path} is over {MAX_FILE_BYTES:,} bytes")
    return files


def _ending(path: Path) -> str:
    """How a file is read: .jsonl, .json, .parquet or .txt; empty where it is not."""
    name = path.name.lower().removesuffix(".gz")
    kinds = {".jsonl": LINES, ".txt": TEXTS, ".json": (".json",), ".parquet": (".parquet",)}
    return next((kind for kind, endings in kinds.items() if name.endswith(endings)), "")


def _texts(path: Path) -> Iterator[str]:
    """The texts of all items of a file."""
    kind = _ending(path)
    if kind == ".parquet":
        try:
            for row in read_rows(path):
                yield from _strings(row)
        except (OSError, ValueError) as error:  # what pyarrow raises derives from these
            raise HerdError(f"{path}: not a whole Parquet file ({one_line(error)})") from None
    elif kind == ".jsonl":
        for number, line in enumerate(_lines(path), 1):
            yield from _strings(_parsed(line, f"{path}:{number}"))
    else:
        data = b"".join(_lines(path))
        if kind == ".json":
            yield from _strings(_parsed(data, str(path)))
        else:
            yield data.decode("utf-8", "replace")


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, unpacked where it is gzip; bounded, as a small archive may unpack to anything."""
    size = number = 0
    plain = _ending(path) != ".jsonl"
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number, size = number + 1, size + len(line)
                if size > MAX_FILE_BYTES:
                    raise HerdError(f"{path}: unpacks to over {MAX_FILE_BYTES:,} bytes")
                if len(line) > MAX_LINE_BYTES and not plain:
                    raise HerdError(f"{path}:{number}: a line of over {MAX_LINE_BYTES:,} bytes")
                if plain or line.strip():
                    yield line
    except (OSError, EOFError) as error:
        raise HerdError(f"{path}: can't be read ({error})") from None


def _parsed(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise HerdError(f"{where}: not valid JSON ({error}); an item of a benchmark is expected") from None


def _strings(value: Any, depth: int = 0) -> Iterator[str]:
    """All strings in a value, however its fields are called."""
    if isinstance(value, str):
        yield value
    elif depth < MAX_DEPTH and isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(part, depth + 1)


def _table(parts: list[tuple[Hashes, int]]) -> _Table:
    hashes = np.concatenate([grams for grams, _ in parts])
    owners = np.repeat(np.array([owner for _, owner in parts], np.uint16), [len(grams) for grams, _ in parts])
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    new = np.ones(len(hashes), np.bool_)
    new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return _Table(hashes[new], owners[new], _sieve(hashes[new]))


def _sieve(hashes: Hashes) -> np.ndarray:
    sieve = np.zeros(1 << SIEVE_BITS, np.bool_)
    sieve[hashes & np.uint64((1 << SIEVE_BITS) - 1)] = True
    return sieve
