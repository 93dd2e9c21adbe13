"""The first pass over a part: text out of raw documents, personal data masked, language told, hashes written.

What it drops, it drops by the document alone. What needs other documents to be decided (copies, repeated lines,
whole domains) leaves only hashes here: sorted runs of keys and arrays of facts, for `duplicates.py`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from herd.data import language, minhash, pii
from herd.data.documents import CURATED, Writer, read_rows
from herd.data.domain_scores import DomainCounts
from herd.data.domains import DomainList, host_of, site_of
from herd.data.exchange import write_run
from herd.data.extract import extract
from herd.data.funnel import Ledger
from herd.data.language import LanguageTable, declared_language
from herd.data.lines import line_keys
from herd.data.word_lists import DirtyWords, is_dirty, word_count
from herd.data.words import Hashes, Tokens, tokens
from herd.recipe_data import Data

TEXT_KINDS = ("prose", "docs")  # what is read as text: lines may go, words are judged; code or a table would break
ANY_LANGUAGE_KINDS = ("code", "table")

EXTRACTED = pa.schema(
    [
        *(
            CURATED.field(name)
            for name in ("id", "source", "path", "url", "kind", "page", "language", "licence", "retrieved", "text")
        ),
        ("verbatim", pa.list_(pa.list_(pa.int32()))),
        ("bytes", pa.int32()),
    ]
)
# Facts of each document that goes on; a file each, joined over parts.
FACTS = ("ids", "bytes", "days", "digests", "signatures", "sites")


class Cleaning(NamedTuple):
    """A task: clean the part `raw` and write what is known of it under `folder`/`name`."""

    raw: Path
    folder: Path
    name: str
    data: Data
    line_buckets: int
    blocklist: Path | None
    base: Path


def clean(task: Cleaning) -> dict[str, Any]:
    """The first pass over a part; returns its books, and how many documents go on."""
    facts = Facts(task)
    with (
        Ledger(task.folder, f"{task.name}.clean") as ledger,
        Writer(task.folder / f"{task.name}.extracted.parquet", EXTRACTED, weigh="text", compression="lz4") as writer,
    ):
        cleaner = _Cleaner(task, ledger)
        for row in read_rows(task.raw):
            if (done := cleaner.clean(row)) is not None:
                writer.write(done[0])
                facts.add(*done)
        books = ledger.books()
    facts.write()
    return {"books": books, "documents": len(facts.bytes), **cleaner.tables()}


class _Cleaner:
    """The steps on one document, with what they need."""

    def __init__(self, task: Cleaning, ledger: Ledger) -> None:
        self._ledger = ledger
        self._wanted = task.data.languages
        self._blocklist = DomainList.read(task.blocklist) if task.blocklist else None
        self._dirty = dirty_words(task.data, task.base)
        self._languages = LanguageTable()
        self._sites: dict[str, DomainCounts] = defaultdict(DomainCounts)

    def clean(self, row: dict[str, Any]) -> tuple[dict[str, Any], Tokens] | None:
        """A raw document as extracted text with its language; None where a step dropped it."""
        ledger = self._ledger
        content, media = row.pop("content"), row.pop("media")
        ledger.enter("blocklist", len(content))
        if self._blocklist is not None and row["url"] and (listed := self._blocklist.blocked(row["url"])):
            return ledger.drop(row, "blocklist", "listed_domain", 1.0, 0.0, len(content), listed)
        ledger.enter("extract", len(content))
        try:
            found = extract(content, media)
        except UnicodeError:
            return ledger.drop(row, "extract", "not_text", 0.0, 1.0, len(content))
        if not found.text.strip():
            return ledger.drop(row, "extract", "no_text", 0.0, 1.0, len(content))
        ledger.note("encodings", found.encoding)
        if not found.complete:
            ledger.note("cut_short", media)
        return self._private(row, found, declared_language(row["path"], content[:2048] if media == "html" else b""))

    def _private(self, row: dict[str, Any], found: Any, declared: str) -> tuple[dict[str, Any], Tokens] | None:
        ledger = self._ledger
        code, confidence = language.identify(found.text)
        size = len(found.text.encode("utf-8", "replace"))
        ledger.enter("pii", size)
        masked = pii.mask(found.text, row["kind"])
        if masked.is_directory:
            return ledger.drop(row, "pii", "directory", masked.personal_per_kb, pii.MAX_PERSONAL_PER_KB, size)
        parts = tokens(masked.text)
        if personal := +masked.counts:
            for name, count in personal.items():
                ledger.note("masked", name, count)
            sample = ", ".join(f"{count} {name}" for name, count in sorted(personal.items()))
            ledger.change(row, "pii", "masked", personal.total(), size - len(parts.data), sample)

        ledger.enter("language", len(parts.data))
        if row["kind"] not in ANY_LANGUAGE_KINDS:
            self._languages.add(row["source"], declared, code, confidence, len(parts.data))
            if code not in self._wanted:
                ledger.note("other_languages", code)
                return ledger.drop(row, "language", "other_language", confidence, 0.0, len(parts.data), masked.text)
        if row["url"]:
            self._count(site_of(host_of(row["url"])), parts, masked, code)
        row |= {"language": code, "page": found.page, "text": masked.text, "verbatim": found.verbatim}
        return {**row, "bytes": len(parts.data)}, parts

    def _count(self, site: str, parts: Tokens, masked: pii.Masked, code: str) -> None:
        """Add a document to the counts of its site."""
        words = word_count(parts, masked.text, code)
        dirty = self._dirty.count(parts, masked.text, code) if self._dirty is not None else 0
        personal = masked.personal
        self._sites[site] += DomainCounts(
            1, len(parts.data), words, personal, int(personal > 0), dirty, int(is_dirty(dirty, words))
        )

    def tables(self) -> dict[str, Any]:
        """What is known of languages and of whole sites."""
        return {
            "languages": self._languages.to_json(),
            "sites": {site: astuple(counts) for site, counts in sorted(self._sites.items())},
        }


@cache
def _word_lists(specs: tuple[str, ...], base: Path, languages: tuple[str, ...]) -> DirtyWords:
    return DirtyWords.load(specs, base, languages)


def dirty_words(data: Data, base: Path) -> DirtyWords | None:
    """The recipe's word lists, where it names some; read once a process."""
    return _word_lists(tuple(data.dirty_words), base, tuple(data.languages)) if data.dirty_words else None


class Facts:
    """What is remembered of the part's documents: hashes and sizes, no text."""

    def __init__(self, task: Cleaning) -> None:
        self._task = task
        self.ids: list[int] = []
        self.bytes: list[int] = []
        self._days: list[int] = []
        self._digests: list[bytes] = []
        self._sites: list[int] = []
        self._urls: list[int] = []
        self._salts: list[int] = []
        self._signatures = minhash.Signatures()
        self._lines: list[Hashes] = []

    def add(self, row: dict[str, Any], parts: Tokens) -> None:
        self.ids.append(int(row["id"], 16))
        self.bytes.append(len(parts.data))
        self._days.append(row["retrieved"].toordinal())
        self._digests.append(_text_digest(row["text"]))
        self._urls.append(text_key(normal_url(row["url"])) if row["url"] else 0)
        self._sites.append(text_key(site_of(host_of(row["url"]))) if row["url"] else 0)
        # Paper 3.1.2: copies are looked for within a language. Code has none.
        spoken = "" if row["kind"] in ANY_LANGUAGE_KINDS else row["language"]
        self._salts.append(text_key(f"language {spoken}"))
        self._signatures.add(parts)
        empty = np.empty(0, np.uint64)
        keys = line_keys(parts, row["verbatim"]) if row["kind"] in TEXT_KINDS else empty
        self._lines.append(salted_lines(keys, row["language"], self.ids[-1] % self._task.line_buckets))

    def write(self) -> None:
        """Arrays and runs of keys, under the task's name."""
        base = self._task.folder / self._task.name
        signatures = self._signatures.array()
        salts = np.array(self._salts, np.uint64)
        digests = np.frombuffer(b"".join(self._digests), np.uint64).reshape(-1, 2)
        arrays = {
            "ids": np.array(self.ids, np.uint64),
            "bytes": np.array(self.bytes, np.int64),
            "days": np.array(self._days, np.int32),
            "digests": digests,
            "signatures": minhash.shortened(signatures),
            "sites": np.array(self._sites, np.uint64),
        }
        for name in FACTS:
            np.save(f"{base}.{name}.npy", arrays[name])
        urls = np.array(self._urls, np.uint64)
        rows = np.arange(len(self.ids), dtype=np.int64)
        write_run(Path(f"{base}.url"), urls[urls > 0], rows[urls > 0])
        write_run(Path(f"{base}.exact"), digests[:, 0] ^ salts, rows)
        for band, keys in enumerate(minhash.band_keys(signatures, self._task.data.near_duplicate_similarity, salts)):
            write_run(Path(f"{base}.band{band}"), keys, rows)
        lines = np.concatenate([np.empty(0, np.uint64), *self._lines])
        write_run(Path(f"{base}.lines"), lines, np.repeat(rows, [len(keys) for keys in self._lines]))


def _text_digest(text: str) -> bytes:
    """SHA-256, first 16 bytes, of a text with its white space collapsed: what "the same text" means."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).digest()[:16]


def text_key(text: str) -> int:
    """64 bits of the SHA-256 of a text, never 0."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "little") | 1


def normal_url(url: str) -> str:
    """What is "the same URL": scheme, case of the host, a default port, `www.`, a fragment and a last / don't count."""
    rest = url.split("#", 1)[0].split("://", 1)[-1]
    host, slash, path = rest.partition("/")
    host = host.lower().removesuffix(":80").removesuffix(":443").removeprefix("www.")
    return f"{host}{slash}{path}".rstrip("/")


def salted_lines(keys: Hashes, spoken: str, bucket: int) -> Hashes:
    """Keys of lines that meet only lines of the same language and bucket of documents (paper 3.1.1: of 30M)."""
    return keys ^ np.uint64(text_key(f"lines {spoken} {bucket}"))
