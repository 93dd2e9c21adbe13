"""The first pass over a part: text out of raw documents, personal data masked, language told, hashes written.

What it drops, it drops by the document alone. What needs other documents to be decided (copies, repeated lines,
whole domains) leaves only hashes here: sorted runs of keys and arrays of facts, for `duplicates.py`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from herd.data import language, minhash, pii
from herd.data.documents import CURATED, Writer, read_rows
from herd.data.domain_scores import DomainCounts
from herd.data.domains import DomainList, host_of, site_of
from herd.data.exchange import write_run
from herd.data.extract import Extracted, extract, is_text
from herd.data.funnel import Ledger
from herd.data.language import LanguageTable, declared_language
from herd.data.lines import line_keys
from herd.data.settings import CurateSettings
from herd.data.word_lists import DirtyWords, is_dirty, word_count
from herd.data.words import Hashes, Tokens, tokens

TEXT_KINDS = ("prose", "docs")  # what is read as text: lines may go, words are judged; code or a table would break
ANY_LANGUAGE_KINDS = ("code", "table")

BATCH = 64  # documents that go through a step together

EXTRACTED = pa.schema(
    [
        *(
            CURATED.field(name)
            for name in ("id", "source", "path", "url", "kind", "page", "language", "licence", "retrieved", "text")
        ),
        ("verbatim", pa.list_(pa.list_(pa.int32()))),
        ("bytes", pa.int32()),
        ("dirty", pa.int32()),  # words of the recipe's lists
    ]
)
# Facts of each document that goes on; a file each, joined over parts.
FACTS = ("ids", "bytes", "days", "digests", "signatures", "sites")


class Cleaning(NamedTuple):
    """A task: clean the part `raw` and write what is known of it into `folder`, under the part's name."""

    raw: Path
    folder: Path
    settings: CurateSettings
    line_buckets: int
    blocklist: Path | None

    @property
    def name(self) -> str:
        return self.raw.stem


def clean(task: Cleaning) -> dict[str, Any]:
    """The first pass over a part; returns its books, and how many documents go on."""
    facts = Facts(task)
    with (
        Ledger(task.folder, f"{task.name}.clean") as ledger,
        Writer(task.folder / f"{task.name}.extracted.parquet", EXTRACTED, weigh="text", compression="lz4") as writer,
    ):
        cleaner = _Cleaner(task, ledger)
        rows = read_rows(task.raw)
        while batch := list(islice(rows, BATCH)):
            for done in cleaner.clean(batch):
                writer.write(done[0])
                facts.add(*done)
        books = ledger.books()
    facts.write()
    return {"books": books, "documents": len(facts.bytes), **cleaner.tables()}


class _Cleaner:
    """The steps on some documents, with what they need."""

    def __init__(self, task: Cleaning, ledger: Ledger) -> None:
        self._ledger = ledger
        self._wanted = task.settings.data.languages
        self._blocklist = DomainList.read(task.blocklist) if task.blocklist else None
        self._dirty = dirty_words(task.settings)
        self._languages = LanguageTable()
        self._sites: dict[str, DomainCounts] = defaultdict(DomainCounts)

    def clean(self, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Tokens]]:
        """Raw documents as extracted text with its language, those that no step dropped.

        Step after step for all of them: a language model of a megabyte stays in the processor's cache only while
        nothing else is done (0.14 ms a document instead of 0.29).
        """
        listed = [self._listed(row) for row in rows]
        pages = [None if name else _extracted(row) for row, name in zip(rows, listed, strict=True)]
        spoken = [language.identify(page.text) if page else ("", 0.0) for page in pages]
        masked = [pii.mask(page.text, row["kind"]) if page else None for row, page in zip(rows, pages, strict=True)]
        for row, name, page, (code, confidence), text in zip(rows, listed, pages, spoken, masked, strict=True):
            if page is None or text is None:
                self._drop_raw(row, name)
                continue
            self._note(row, page)
            if (done := self._private(row, page, text, code, confidence)) is not None:
                yield done

    def _listed(self, row: dict[str, Any]) -> str | None:
        return self._blocklist.blocked(row["url"]) if self._blocklist is not None and row["url"] else None

    def _drop_raw(self, row: dict[str, Any], listed: str | None) -> None:
        content = row["content"]
        self._ledger.enter("blocklist", len(content))
        if listed:
            return self._ledger.drop(row, "blocklist", "listed_domain", 1.0, 0.0, len(content), listed)
        self._ledger.enter("extract", len(content))
        rule = "no_text" if is_text(content, row["media"]) else "not_text"
        return self._ledger.drop(row, "extract", rule, 0.0, 1.0, len(content))

    def _note(self, row: dict[str, Any], page: Extracted) -> None:
        for step in ("blocklist", "extract"):
            self._ledger.enter(step, len(row["content"]))
        self._ledger.note("encodings", page.encoding)
        if not page.complete:
            self._ledger.note("cut_short", row["media"])

    def _private(
        self, row: dict[str, Any], page: Extracted, masked: pii.Masked, code: str, confidence: float
    ) -> tuple[dict[str, Any], Tokens] | None:
        ledger = self._ledger
        content, media = row.pop("content"), row.pop("media")
        parts = tokens(masked.text)
        personal = +masked.counts
        size = len(page.text.encode("utf-8", "replace")) if personal else len(parts.data)
        ledger.enter("pii", size)
        if masked.is_directory:
            return ledger.drop(row, "pii", "directory", masked.personal_per_kb, pii.MAX_PERSONAL_PER_KB, size)
        if personal:
            for name, count in personal.items():
                ledger.note("masked", name, count)
            sample = ", ".join(f"{count} {name}" for name, count in sorted(personal.items()))
            ledger.change(row, "pii", "masked", personal.total(), size - len(parts.data), sample)

        ledger.enter("language", len(parts.data))
        dirty = 0
        if row["kind"] not in ANY_LANGUAGE_KINDS:
            declared = declared_language(row["path"], content[:2048] if media == "html" else b"")
            self._languages.add(row["source"], declared, code, confidence, len(parts.data))
            if code not in self._wanted:
                ledger.note("other_languages", code)
                return ledger.drop(row, "language", "other_language", confidence, 0.0, len(parts.data), masked.text)
            dirty = self._dirty.count(parts, masked.text, code) if self._dirty is not None else 0
        if row["url"]:
            self._count(site_of(host_of(row["url"])), parts, masked, code, dirty)
        row |= {"language": code, "page": page.page, "text": masked.text, "verbatim": page.verbatim, "dirty": dirty}
        return {**row, "bytes": len(parts.data)}, parts

    def _count(self, site: str, parts: Tokens, masked: pii.Masked, code: str, dirty: int) -> None:
        """Add a document to the counts of its site."""
        words = word_count(parts, masked.text, code)
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


def _extracted(row: dict[str, Any]) -> Extracted | None:
    """The text of a raw document; None where there is none."""
    try:
        page = extract(row["content"], row["media"])
    except UnicodeError:
        return None
    return page if page.text.strip() else None


def forget_lists() -> None:
    """Read lists anew from now on: files may have changed since another run of this process read them."""
    _word_lists.cache_clear()


@cache
def _word_lists(specs: tuple[str, ...], base: Path, languages: tuple[str, ...]) -> DirtyWords:
    return DirtyWords.load(specs, base, languages)


def dirty_words(settings: CurateSettings) -> DirtyWords | None:
    """The recipe's word lists, where it names some; read once a process."""
    data = settings.data
    return _word_lists(tuple(data.dirty_words), settings.base, tuple(data.languages)) if data.dirty_words else None


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
        self._wordy: list[bool] = []
        self._signatures = minhash.Signatures()
        self._lines: list[Hashes] = []

    def add(self, row: dict[str, Any], parts: Tokens) -> None:
        self.ids.append(int(row["id"], 16))
        self.bytes.append(len(parts.data))
        self._days.append(row["retrieved"].toordinal())
        self._digests.append(_text_digest(parts))
        address = normal_url(row["url"]) if row["url"] else ""
        self._urls.append(text_key(address) if address else 0)
        self._sites.append(text_key(site_of(host_of(row["url"]))) if row["url"] else 0)
        # Paper 3.1.2: copies are looked for within a language. Code has none.
        spoken = "" if row["kind"] in ANY_LANGUAGE_KINDS else row["language"]
        self._salts.append(text_key(f"language {spoken}"))
        self._wordy.append(len(parts.words) > 0)
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
        wordy = np.array(self._wordy, np.bool_)  # texts without words are not alike for having none
        write_run(Path(f"{base}.url"), urls[urls > 0], rows[urls > 0])
        write_run(Path(f"{base}.exact"), digests[:, 0] ^ salts, rows)
        for band, keys in enumerate(
            minhash.band_keys(signatures, self._task.settings.data.near_duplicate_similarity, salts)
        ):
            write_run(Path(f"{base}.band{band}"), keys[wordy], rows[wordy])
        lines = np.concatenate([np.empty(0, np.uint64), *self._lines])
        write_run(Path(f"{base}.lines"), lines, np.repeat(rows, [len(keys) for keys in self._lines]))


def _text_digest(parts: Tokens) -> bytes:
    """SHA-256, first 16 bytes, of a text without its white space: what "the same text" means."""
    return hashlib.sha256(parts.data.tobytes().translate(None, b" \t\n\r\f\v")).digest()[:16]


def text_key(text: str) -> int:
    """64 bits of the SHA-256 of a text, never 0."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "little") | 1


def normal_url(url: str) -> str:
    """What is "the same URL": scheme, case of the host, a default port, `www.`, a fragment and a last / don't count."""
    page, _, fragment = url.partition("#")
    if fragment.startswith(("/", "!")):  # a page of its own, which a script shows
        page = url
    rest = page.split("://", 1)[-1]
    host, slash, path = rest.partition("/")
    host = host.lower().removesuffix(":80").removesuffix(":443").removeprefix("www.")
    return f"{host}{slash}{path}".rstrip("/")


def salted_lines(keys: Hashes, spoken: str, bucket: int) -> Hashes:
    """Keys of lines that meet only lines of the same language and bucket of documents (paper 3.1.1: of 30M)."""
    return keys ^ np.uint64(text_key(f"lines {spoken} {bucket}"))
