"""The books of curation: what went into each step, what it dropped by which rule, what it changed, what was kept.

Every task keeps books of its own over its part of the documents; books add up, whatever the parts.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from herd.data.documents import CHANGES, DROPS, SAMPLES, Writer, read_rows

STEPS = (
    "blocklist",
    "extract",
    "pii",
    "language",
    "domains",
    "url",
    "exact",
    "near",
    "lines",
    "heuristics",
    "contamination",
    "outliers",
    "quality",
    "mix",
)
SAMPLES_PER_RULE = 12
SAMPLE_CHARACTERS = 2_000
KEPT_BY = ("kind", "group", "language", "topic", "source", "page")
RECORDS = ("drops", "changes", "samples")

Books = dict[str, Any]  # nested tables of counts: step -> counts, rules -> step.rule -> counts, notes, kept
_RECORD = ("id", "source", "path", "url")


class Samples:
    """A few documents for each rule and step: those of lowest hash, whatever their order and the parts they come in."""

    def __init__(self) -> None:
        self._best: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = defaultdict(list)

    def add(self, step: str, rule: str, found: Mapping[str, Any], text: str) -> None:
        """A document that `rule` dropped, or that passed the step where the rule is empty."""
        rank = hashlib.sha256(f"{step}\0{rule}\0{found['id']}".encode()).hexdigest()
        best = self._best[step, rule]
        if len(best) < SAMPLES_PER_RULE or rank < best[-1][0]:
            row = {**found, "step": step, "rule": rule, "dropped": bool(rule), "text": text[:SAMPLE_CHARACTERS]}
            best.append((rank, row))
            best.sort(key=lambda ranked: ranked[0])
            del best[SAMPLES_PER_RULE:]

    def write(self, path: Path) -> None:
        """As Parquet, by step and rule."""
        with Writer(path, SAMPLES) as writer:
            for _, best in sorted(self._best.items()):
                for _, row in best:
                    writer.write(row)


class Ledger:
    """Counts documents and bytes step by step, and writes a row for every document dropped or changed.

    Bytes are those of the raw content in the steps `blocklist` and `extract`, of UTF-8 text after them. Use in a
    `with` block; `folder` gets NAME.drops.parquet, NAME.changes.parquet and NAME.samples.parquet.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._paths = {record: folder / f"{name}.{record}.parquet" for record in RECORDS}
        self._drops = Writer(self._paths["drops"], DROPS)
        self._changes = Writer(self._paths["changes"], CHANGES)
        self._samples = Samples()
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)

    def enter(self, step: str, size: int) -> None:
        """A document that a step is given, and its bytes."""
        self._counts[f"steps/{step}"].update(documents_in=1, bytes_in=size)

    def drop(
        self,
        row: Mapping[str, Any],
        step: str,
        rule: str,
        score: float,
        threshold: float,
        size: int,
        text: str = "",
        kept: str = "",
    ) -> None:
        """Record that `rule` dropped a document: what it measured, its limit, and what is kept in its place."""
        found = {name: row[name] for name in _RECORD} | {"score": score, "threshold": threshold}
        self._drops.write({**found, "step": step, "rule": rule, "bytes": size, "kept": kept})
        self._counts[f"steps/{step}"].update(documents_dropped=1, bytes_dropped=size)
        self._counts[f"rules/{step}/{rule}"].update(documents=1, bytes=size)
        self._samples.add(step, rule, found, text)

    def show_passed(self, row: Mapping[str, Any], step: str, text: str) -> None:
        """A document that passed a step, as one to compare with those that were dropped."""
        self._samples.add(step, "", {name: row[name] for name in _RECORD} | {"score": None, "threshold": None}, text)

    def change(self, row: Mapping[str, Any], step: str, rule: str, count: int, size: int, sample: str = "") -> None:
        """Record that `rule` took so many things out of a document that goes on."""
        self._changes.write(
            {"id": row["id"], "step": step, "rule": rule, "count": count, "bytes": size, "sample": sample}
        )
        self._counts[f"steps/{step}"].update(bytes_dropped=size)
        self._counts[f"rules/{step}/{rule}"].update(documents_changed=1, changes=count, bytes=size)

    def note(self, name: str, value: str, count: int = 1) -> None:
        """Count something worth knowing that drops nothing, such as encodings."""
        self._counts[f"notes/{name}"][value] += count

    def keep(self, row: Mapping[str, Any]) -> None:
        """Count a document of the outcome."""
        for by in KEPT_BY:
            self._counts[f"kept/{by}/{row[by]}"].update(documents=1, bytes=row["bytes"])
        self._counts["licences"][row["licence"]] += 1
        self._counts["splits"][row["split"]] += 1

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for writer in (self._drops, self._changes):
            writer.__exit__(kind)
        if kind is None:
            self._samples.write(self._paths["samples"])

    def books(self) -> Books:
        """The counts, as JSON can hold them."""
        return {name: dict(counts) for name, counts in self._counts.items()}


def add_up(all_books: Iterable[Books]) -> Books:
    """Books of parts as one."""
    total: dict[str, Counter[str]] = defaultdict(Counter)
    for books in all_books:
        for name, counts in books.items():
            total[name].update(counts)
    return {name: dict(sorted(counts.items())) for name, counts in sorted(total.items())}


def summary(books: Books) -> dict[str, Any]:
    """What `funnel.json` holds, of books that were added up."""
    kept: dict[str, Any] = {f"by_{by}": {} for by in KEPT_BY}
    rules: dict[str, dict[str, Any]] = {step: {} for step in STEPS}
    notes: dict[str, Any] = {}
    for name, counts in books.items():
        kind, _, rest = name.partition("/")
        if kind == "rules":
            step, _, rule = rest.partition("/")
            rules[step][rule] = {"documents": 0, "bytes": 0} | counts
        elif kind == "kept":
            by, _, value = rest.partition("/")
            kept[f"by_{by}"][value] = counts
        elif kind == "notes":
            notes[rest] = counts
    names = ("documents_in", "bytes_in", "documents_dropped", "bytes_dropped")
    counts_of = {step: books.get(f"steps/{step}", {}) for step in STEPS}
    splits = books.get("splits", {})
    return {
        "steps": [
            {"step": step, **{name: counts_of[step].get(name, 0) for name in names}, "rules": rules[step]}
            for step in STEPS
        ],
        "kept": {
            "documents": sum(splits.values()),
            "bytes": sum(counts["bytes"] for counts in kept["by_kind"].values()),
            "splits": splits,
            **kept,
        },
        "licences": books.get("licences", {}),
        **notes,
    }


def exhausted(funnel: Mapping[str, Any]) -> list[str]:
    """Steps of a summary that dropped every document they were given."""
    return [s["step"] for s in funnel["steps"] if 0 < s["documents_in"] == s["documents_dropped"]]


def worst_rules(funnel: Mapping[str, Any], count: int) -> list[tuple[str, int]]:
    """The rules of a summary that dropped the most documents."""
    totals = Counter(
        {f"{s['step']}.{rule}": counts["documents"] for s in funnel["steps"] for rule, counts in s["rules"].items()}
    )
    return [(rule, dropped) for rule, dropped in totals.most_common(count) if dropped]


def write_records(folder: Path, ledgers: list[tuple[Path, str]]) -> None:
    """Join what the ledgers of all tasks wrote, in their order; of samples the few of lowest hash stay."""
    for record, schema in (("drops", DROPS), ("changes", CHANGES)):
        with Writer(folder / f"{record}.parquet", schema) as writer:
            for work, name in ledgers:
                for row in read_rows(work / f"{name}.{record}.parquet"):
                    writer.write(row)
    joined = Samples()
    for work, name in ledgers:
        for row in read_rows(work / f"{name}.samples.parquet"):
            joined.add(row["step"], row["rule"], row, row["text"])
    joined.write(folder / "samples.parquet")
