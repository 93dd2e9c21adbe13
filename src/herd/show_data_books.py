"""What curation decided, read back from a run: documents by id, path or URL, their fates, and the reasons in words.

Files are read one row group at a time, so that looking at a large corpus needs little memory. Paths, addresses and
texts are foreign: what goes to a terminal passes `plain` first.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from herd.artifact import Artifact, published
from herd.console import HerdError, human_bytes

pc: Any = pyarrow.compute  # its functions are made when it is imported, so type checkers know none of them

DOCUMENTS, DROPS, CHANGES, SAMPLES = "documents.parquet", "drops.parquet", "changes.parquet", "samples.parquet"
_PLACE = ["id", "source", "path", "url"]


@dataclass(frozen=True)
class Books:
    """A run's folder, the artifacts of collecting and curating it, and what `funnel.json` holds."""

    run: Path
    sources: Artifact
    curate: Artifact
    funnel: dict[str, Any]

    def file(self, name: str) -> Path:
        """One of the tables that curation wrote."""
        return self.curate.file(name)

    def raw(self) -> list[Path]:
        """The files of raw documents, in order."""
        return raw_files(self.sources)


class Fate(NamedTuple):
    """What became of a document. `step` is empty where it was kept; `kept` is the id of what stands for a copy."""

    id: str
    source: str
    path: str
    url: str
    step: str = ""
    rule: str = ""
    score: float = 0.0
    threshold: float = 0.0
    bytes: int = 0
    kept: str = ""


def open_books(run: Path) -> Books:
    """The books of a run. Raises HerdError where nothing was curated there."""
    done = published(run)
    if missing := [stage for stage in ("sources", "curate") if stage not in done]:
        raise HerdError(f"{run}: no artifact of the stage '{missing[0]}': nothing was curated in this run")
    return Books(run, done["sources"], done["curate"], done["curate"].json("funnel.json"))


def raw_files(sources: Artifact) -> list[Path]:
    """The Parquet files of raw documents: one file, or the parts of a folder."""
    names = [
        n for n in sources.manifest["files"] if n == DOCUMENTS or (n.startswith("documents/") and n[-8:] == ".parquet")
    ]
    if not names:
        raise HerdError(f"{sources.path}: no raw documents (documents.parquet, documents/*.parquet) in the manifest")
    return [sources.path / name for name in sorted(names)]


def groups(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """A Parquet file a row group at a time, with those of the columns that it has."""
    with pq.ParquetFile(path) as file:
        there = [name for name in columns if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=there)


def rows_where(
    path: Path, column: str, values: Sequence[str], columns: Sequence[str], most: int = 0
) -> list[dict[str, Any]]:
    """Rows of a file whose `column` is one of `values`, the first `most` of them where it is above 0.

    Documents lie in the order of their sources and paths, so ids are spread over all row groups and a group's bounds
    hardly ever rule it out; the one column is read of each such group, and the others only where it has a hit.
    """
    wanted, found = pa.array(list(values), pa.string()), list[dict[str, Any]]()
    with pq.ParquetFile(path) as file:
        there = [name for name in dict.fromkeys([*columns, column]) if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            if not _may_hold(file, group, column, values):
                continue
            hit = pc.is_in(file.read_row_group(group, columns=[column])[column], value_set=wanted)
            if pc.any(hit).as_py():
                found += file.read_row_group(group, columns=there).filter(hit).to_pylist()
            if most and len(found) >= most:
                return found[:most]
    return found


def _may_hold(file: pq.ParquetFile, group: int, column: str, values: Sequence[str]) -> bool:
    """Whether one of the values is within the bounds that the file notes of a row group's column."""
    bounds = file.metadata.row_group(group).column(file.schema_arrow.names.index(column)).statistics
    return bounds is None or not bounds.has_min_max or any(bounds.min <= value <= bounds.max for value in values)


def find(books: Books, words: str, most: int = 20) -> tuple[list[Fate], int]:
    """Documents of an id, URL or path, else those whose path, URL, source or id holds every word; and how many.

    At most `most` are returned, those dropped after those kept. A document that is matched exactly stands alone.
    """
    for column in ("id", "url", "path"):
        exact = [fate for file in (DOCUMENTS, DROPS) for fate in _fates(books, file, column, words)]
        if exact:
            return exact[:most], len(exact)
    found, total = list[Fate](), 0
    parts = words.split()
    for file in (DOCUMENTS, DROPS):
        for table in groups(books.file(file), [*Fate._fields]):
            hit = pc.invert(pc.is_null(table["id"]))
            for part in parts:
                inside = [_holds(table[name], part) for name in _PLACE if name in table.column_names]
                hit = pc.and_(hit, _any(inside))
            rows = table.filter(hit)
            total += rows.num_rows
            found += [_fate(row) for row in rows.slice(0, max(0, most - len(found))).to_pylist()]
    return found, total


def keeper_of(books: Books, fate: Fate) -> Fate | None:
    """The document that stands for a copy, kept or itself dropped later; its size is that before lines were taken."""
    if not fate.kept or (head := head_of(books, fate.kept)) is None:
        return None
    taken = sum(row["bytes"] for row in changes(books, [fate.kept]) if row["step"] == "lines")
    return head._replace(bytes=head.bytes + taken)


def head_of(books: Books, id: str) -> Fate | None:
    """The document of this id, kept or dropped."""
    return next((fate for file in (DOCUMENTS, DROPS) for fate in _fates(books, file, "id", id, 1)), None)


def changes(books: Books, ids: Sequence[str]) -> list[dict[str, Any]]:
    """What steps changed in documents that they let pass."""
    return rows_where(books.file(CHANGES), "id", ids, ["id", "step", "rule", "count", "bytes", "sample"])


def near_misses(books: Books, words: str, most: int = 5) -> list[Fate]:
    """Documents whose path or URL shares the most pieces (between punctuation) with what was asked for."""
    weights: dict[str, int] = {}  # what a file is called says more than the folders it lies in
    for part in words.split("/"):
        name = part == words.split("/")[-1]
        for piece in "".join(c if c.isalnum() else " " for c in part.lower()).split():
            if len(piece) > 2:
                weights[piece] = 3 if name else 1
    best: list[tuple[int, str, Fate]] = []
    for file in (DOCUMENTS, DROPS):
        for table in groups(books.file(file), [*Fate._fields]):
            score = pa.chunked_array([pa.array([0] * table.num_rows, pa.int32())])
            for piece, weight in list(weights.items())[-12:]:
                inside = _any([_holds(table[name], piece) for name in ("path", "url") if name in table.column_names])
                score = pc.add(score, pc.multiply(pc.cast(inside, pa.int32()), weight))
            scored = table.append_column("shared", score)
            scored = scored.filter(pc.greater(scored["shared"], 0))
            for row in scored.sort_by([("shared", "descending"), ("id", "ascending")]).slice(0, most).to_pylist():
                best.append((-row["shared"], row["id"], _fate(row)))
    return [fate for _, _, fate in sorted(best, key=lambda one: one[:2])[:most]]


def _holds(column: Any, part: str) -> Any:
    return pc.fill_null(pc.match_substring(column, part, ignore_case=True), False)


def _any(masks: list[Any]) -> Any:
    hit = masks[0]
    for mask in masks[1:]:
        hit = pc.or_(hit, mask)
    return hit


def _fates(books: Books, file: str, column: str, value: str, most: int = 0) -> list[Fate]:
    return [_fate(row) for row in rows_where(books.file(file), column, [value], Fate._fields, most)] if value else []


def _fate(row: Mapping[str, Any]) -> Fate:
    return Fate(**{name: row[name] for name in Fate._fields if row.get(name) is not None})


def measured(score: float, threshold: float) -> str:
    """A score against its limit: 20 < 200, 0.93 >= 0.8."""
    relation = "<" if score < threshold else ">" if score > threshold else "="
    return f"{number(score)} {relation} {number(threshold)}"


def number(value: float) -> str:
    """A measured value as a person writes it."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def reason(fate: Fate, keeper: Fate | None = None) -> str:
    """Why a document was dropped, in words, with the score against its threshold. `keeper`: what stands for it."""
    if not fate.step:
        return "kept"
    if fate.step in ("url", "exact", "near"):
        return _copy(fate, keeper)
    rule = fate.rule.replace("_", " ")
    if fate.step == "contamination":
        hits = f"{number(fate.score)} n-grams with the benchmark {plain(fate.rule)}"
        return f"it shares {hits}, the limit is {number(fate.threshold)}"
    if fate.step == "mix":
        return f"{plain(rule)}: {number(fate.threshold)} of the documents of its topic were kept, drawn by their ids"
    if phrase := _PHRASES.get(fate.rule):
        return phrase.format(score=number(fate.score), threshold=number(fate.threshold))
    return f"{plain(rule)}: {measured(fate.score, fate.threshold)}"


_PHRASES = {
    "no_text": "no text was left of it",
    "not_text": "its bytes are no text",
    "listed_domain": "its site is on a blocklist",
    "domain_personal_data": "its whole site went: personal data at {score} a kilobyte > {threshold}",
    "domain_dirty_words": "its whole site went: {score} dirty words in 1,000 > {threshold}",
    "domain_dirty_pages": "its whole site went: {score} of its pages have dirty words > {threshold}",
    "directory": "personal data at {score} a kilobyte, the limit is {threshold}: a directory of people",
    "other_language": "in another language than those asked for (confidence {score})",
    "too_short": "too short: {score} bytes < {threshold}",
    "too_long": "too long: {score} bytes > {threshold}",
    "few_letters": "few letters: {score} of its characters < {threshold}",
    "many_digits": "many digits: {score} of its characters > {threshold}",
    "long_line": "a long line: {score} bytes > {threshold}",
    "long_lines": "long lines: {score} bytes on average > {threshold}",
    "repeated_lines": "repeated lines: {score} of its text > {threshold}",
    "dirty_words": "{score} dirty words in 1,000 > {threshold}",
    "odd_words": "its words are far from those of its kind and language: divergence {score} > {threshold}",
    "low_quality": "quality {score} < {threshold}, below the share that its language keeps",
    "generated": "it says that a program generated it",
}


def _copy(fate: Fate, keeper: Fate | None) -> str:
    what = {
        "url": "an older copy of the same URL as",
        "exact": "the same text as",
        "near": f"MinHash similarity {number(fate.score)} >= {number(fate.threshold)} to",
    }[fate.step]
    if keeper is None:
        return f"{what} {fate.kept or 'another document'}"
    if fate.step == "url":
        why = "the most recently retrieved"
    elif fate.step == "near" and keeper.bytes > fate.bytes:
        why = f"longer ({human_bytes(keeper.bytes)} against {human_bytes(fate.bytes)})"
    else:
        why = "the first by id" if fate.step == "exact" else "as long and the first by id"
    chosen, gone = "kept", ""
    if keeper.step:
        chosen, gone = "preferred", f"; it was itself dropped later, in the step '{keeper.step}'"
    return f"{what} {plain(keeper.path)} ({keeper.id}), which was {chosen} because it is {why}{gone}"


def plain(text: str, most: int = 0) -> str:
    """Foreign text as one harmless line: no control or direction characters, cut to `most` characters if above 0."""
    if most and len(text) > most:
        text = text[: most - 1] + "…"
    return "".join(c if unicodedata.category(c)[0] != "C" else "·" for c in text)


def plain_lines(text: str, lines: int, wide: int = 400) -> str:
    """The first lines of a foreign text, each harmless; blank lines in a row are one."""
    shown: list[str] = []
    for line in text.expandtabs(4).splitlines():
        if line.strip() or (shown and shown[-1]):
            shown.append(plain(line.rstrip(), wide))
        if len(shown) == lines:
            break
    return "\n".join(shown).strip("\n")
