"""The stage from raw documents to curated ones, which also writes down what was dropped, by which rule, and why.

Steps, in the paper's order (3.1.1) with one change: text is extracted first, because personal data and language are
judged on text. Then personal data, language (before de-duplication, which the paper runs within each language),
equal texts, near-duplicates, repeated lines, heuristics. Heuristics come last so that a page whose boilerplate lines
are gone is judged by what is left.

The first pass goes over the raw bytes and keeps only hashes in memory; the second goes over the extracted text, and
holds what it keeps to sort it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import field_serializer

from herd import console
from herd.artifact import Artifact, Draft
from herd.console import HerdError
from herd.data import dedup, heuristics, language, pii
from herd.data.documents import CURATED, DROPS, Writer, file_identity, read_rows
from herd.data.extract import extract
from herd.data.funnel import Funnel
from herd.data.words import tokens
from herd.recipe_data import Data
from herd.recipe_section import Section

STEPS = ("extract", "pii", "language", "exact", "near", "lines", "heuristics")
LINE_KINDS = ("prose", "docs")  # a line taken from code or from a table breaks it
ANY_LANGUAGE_KINDS = ("code", "table")
LARGE_CORPUS = 1_000  # documents; every corpus of this size that we saw held near-duplicates and scraps

_EXTRACTED = pa.schema(
    [
        *(CURATED.field(name) for name in ("id", "source", "path", "kind", "language", "licence", "retrieved", "text")),
        ("verbatim", pa.list_(pa.list_(pa.int32()))),
    ]
)


class CurateSettings(Section):
    """What changes the outcome of curation: `[data]` without its list of sources, which is the input's affair."""

    data: Data
    seed: int

    @field_serializer("data")
    def _without_sources(self, data: Data) -> dict[str, Any]:
        return data.model_dump(exclude={"source"})


def curate(settings: CurateSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Curate inputs["sources"]; writes `documents.parquet`, `drops.parquet` and `funnel.json`.

    Documents that are kept and documents that were dropped add up to the input. Raises HerdError where less text is
    left than `data.min_bytes`.
    """
    extracted = out.work / "extracted.parquet"
    with Writer(out.folder / "drops.parquet", DROPS) as drops:
        funnel = Funnel(STEPS, drops)
        index = _first_pass(settings.data, inputs["sources"].file("documents.parquet"), extracted, funnel)
        index.decide(settings.data, funnel)
        _second_pass(settings, index, extracted, out.folder / "documents.parquet", funnel)
    _complain(funnel, settings.data)
    out.write_json("funnel.json", funnel.summary())
    for name in ("documents.parquet", "drops.parquet"):
        out.identify(name, file_identity(out.folder / name))
    extracted.unlink()


class _Index:
    """What is remembered of each extracted document between the passes: hashes and sizes, no text."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []  # id, source, path: for the record of drops
        self.bytes: list[int] = []
        self.digests: list[bytes] = []
        self.signatures = dedup.Signatures()
        self.lines = dedup.LineCounter()
        self.dropped: set[int] = set()

    def add(self, row: dict[str, Any]) -> None:
        parts = tokens(row["text"])
        self.rows.append({name: row[name] for name in ("id", "source", "path")})
        self.bytes.append(len(parts.data))
        self.digests.append(dedup.text_digest(row["text"]))
        self.signatures.add(parts)

    def decide(self, data: Data, funnel: Funnel) -> None:
        """Find the documents that are copies of another."""
        ids = [row["id"] for row in self.rows]
        keeper = dedup.exact_duplicates(self.digests, ids)
        self._drop("exact", "same_text", keeper, np.ones(len(ids)), 1.0, range(len(ids)), funnel)
        left = [i for i in range(len(ids)) if i not in self.dropped]
        found = dedup.near_duplicates(
            self.signatures.array()[left],
            np.array([self.bytes[i] for i in left], np.int64),
            [ids[i] for i in left],
            data.near_duplicate_similarity,
        )
        self._drop("near", "minhash", found.keeper, found.score, data.near_duplicate_similarity, left, funnel)

    def _drop(
        self, step: str, rule: str, keeper: Any, score: Any, threshold: float, which: Any, funnel: Funnel
    ) -> None:
        sizes = [self.bytes[i] for i in which]
        funnel.enter(step, len(sizes), sum(sizes))
        for position, index in enumerate(which):
            if keeper[position] != position:
                funnel.drop(self.rows[index], step, rule, float(score[position]), threshold, self.bytes[index])
                self.dropped.add(index)


def _first_pass(data: Data, raw: Path, extracted: Path, funnel: Funnel) -> _Index:
    """Extract, mask and identify every document; writes the text of those that go on to `extracted`."""
    index = _Index()
    read = 0
    with pq.ParquetFile(raw) as file:
        total = file.metadata.num_rows
    with console.progress("extract", total) as bar, Writer(extracted, _EXTRACTED, weigh="text") as writer:
        for number, row in enumerate(read_rows(raw)):
            read += len(row["content"])
            bar.update(number, console.human_bytes(read))
            if (done := _clean(row, data.languages, funnel)) is not None:
                writer.write(done)
                index.add(done)
    return index


def _clean(row: dict[str, Any], languages: list[str], funnel: Funnel) -> dict[str, Any] | None:
    """One raw document as extracted text with its language; None where a step dropped it."""
    content = row.pop("content")
    media = row.pop("media")
    funnel.enter("extract", 1, len(content))
    try:
        page = extract(content, media)
    except UnicodeError:
        return funnel.drop(row, "extract", "not_text", 0.0, 1.0, len(content))
    if not page.text.strip():
        return funnel.drop(row, "extract", "no_text", 0.0, 1.0, len(content))
    funnel.note("encodings", page.encoding)
    if not page.complete:
        funnel.note("cut_short", media)

    size = len(page.text.encode("utf-8", "replace"))
    funnel.enter("pii", 1, size)
    masked = pii.mask(page.text, row["kind"])
    for name, count in masked.counts.items():
        funnel.note("masked", name, count)
    if masked.is_directory:
        return funnel.drop(row, "pii", "directory", masked.emails_per_kb, pii.MAX_EMAILS_PER_KB, size)

    size = len(masked.text.encode("utf-8", "replace"))
    funnel.enter("language", 1, size)
    code, confidence = language.identify(masked.text)
    if row["kind"] not in ANY_LANGUAGE_KINDS and code not in languages:
        funnel.note("other_languages", code)
        return funnel.drop(row, "language", "other_language", confidence, 0.0, size)
    return {**row, "language": code, "text": masked.text, "verbatim": page.verbatim}


def _second_pass(settings: CurateSettings, index: _Index, extracted: Path, final: Path, funnel: Funnel) -> None:
    """Take boilerplate lines out, judge what is left, and write it sorted by id."""
    data = settings.data
    for number, row in enumerate(read_rows(extracted, ["kind", "text", "verbatim"])):
        if number not in index.dropped and row["kind"] in LINE_KINDS:
            index.lines.add(tokens(row["text"]), row["verbatim"])
    index.lines.close(data.line_repeats)
    kept: list[dict[str, Any]] = []
    with console.progress("filter", len(index.rows)) as bar:
        for number, row in enumerate(read_rows(extracted)):
            bar.update(number)
            if (
                number not in index.dropped
                and (done := _judge(row, index.bytes[number], index, data, funnel)) is not None
            ):
                done["split"] = split_of(done["id"], settings.seed, data.held_out_share)
                kept.append(done)
    kept.sort(key=lambda row: row["id"])
    with Writer(final, CURATED, weigh="text") as writer:
        for row in kept:
            funnel.keep(row)
            writer.write(row)


def _judge(row: dict[str, Any], size: int, index: _Index, data: Data, funnel: Funnel) -> dict[str, Any] | None:
    verbatim = row.pop("verbatim")
    parts = tokens(row["text"])
    funnel.enter("lines", 1, size)
    if row["kind"] in LINE_KINDS:
        row["text"], removed = index.lines.clean(row["text"], parts, verbatim)
        if removed:
            parts = tokens(row["text"])
            funnel.trim("lines", "repeated_line", removed, size - len(parts.data))
    funnel.enter("heuristics", 1, len(parts.data))
    bad = heuristics.judge(row["text"], parts, row["kind"], data.min_document_bytes, data.max_document_bytes)
    if bad is not None:
        return funnel.drop(row, "heuristics", bad.rule, bad.score, bad.threshold, len(parts.data))
    return {**row, "bytes": len(parts.data)}


def split_of(document: str, seed: int, held_out_share: float) -> str:
    """train or heldout, from the seed and the document's id alone: adding documents moves none of the others.

    Of near-duplicates that were found all but one were dropped; looser copies may lie on both sides.
    """
    digest = hashlib.sha256(f"{seed}\0{document}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") < held_out_share * 2**64 else "train"


def _complain(funnel: Funnel, data: Data) -> None:
    """Warn of a step that drops everything; raise HerdError where too little is left."""
    for step in funnel.exhausted():
        console.warn(f"curation: the step '{step}' dropped every document it was given; see funnel.json")
    for step in funnel.idle(("near", "heuristics"), LARGE_CORPUS):
        console.warn(
            f"curation: the step '{step}' dropped nothing, which is odd for so many documents; see funnel.json"
        )
    splits: Counter[str] = funnel.splits
    if funnel.bytes_kept < data.min_bytes:
        worst = ", ".join(f"{rule} ({count:,})" for rule, count in funnel.worst_rules(3))
        raise HerdError(
            f"curation left {console.human_bytes(funnel.bytes_kept)} of text, data.min_bytes asks for "
            f"{console.human_bytes(data.min_bytes)}: add sources, or lower data.min_bytes"
            + (f"; most documents were dropped by {worst}" if worst else "")
        )
    for name in ("train", "heldout"):
        if not splits[name]:
            console.warn(f"curation: no document in the split '{name}'; data.held_out_share is {data.held_out_share:g}")
