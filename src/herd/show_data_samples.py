"""Sampled documents of a step in pairs: what it dropped beside what it let pass, or beside what stands for a copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herd.show_data_books import DOCUMENTS, DROPS, SAMPLES, Books, groups, measured, rows_where

COPIES = ("url", "exact", "near")  # steps that drop a document for another, which is what to compare it with
_COLUMNS = ["step", "rule", "dropped", "id", "source", "path", "url", "score", "threshold", "text"]
Sample = dict[str, Any]


def pairs(books: Books, step: str, most: int) -> list[tuple[Sample | None, Sample | None]]:
    """At most so many pairs of a dropped document and one that stays; None where there is none.

    Dropped ones come one of each rule by turns. For a copy the other is the document kept in its place, None where
    that was dropped later; else any that the step let pass.
    """
    rows = [row for table in groups(books.file(SAMPLES), _COLUMNS) for row in table.to_pylist() if row["step"] == step]
    turns: dict[str, list[Sample]] = {}
    for row in rows:
        if row["dropped"]:
            turns.setdefault(row["rule"], []).append(row)
    longest = max(map(len, turns.values()), default=0)
    dropped = [of_rule[turn] for turn in range(longest) for of_rule in turns.values() if turn < len(of_rule)][:most]
    if step in COPIES and dropped:
        return list(zip(dropped, _standing(books, dropped), strict=True))
    passed = [row for row in rows if not row["dropped"]]
    count = min(most, max(len(dropped), len(passed)))
    return [(_at(dropped, index), _at(passed, index)) for index in range(count)]


def heading(step: str) -> tuple[str, str]:
    """What the two sides of a step's pairs are called."""
    return ("dropped", "kept in its place") if step in COPIES else ("dropped", "let pass")


def verdict(row: Mapping[str, Any]) -> str:
    """A sample's rule and its score against the threshold; empty where nothing was measured."""
    score, threshold = row["score"] or 0.0, row["threshold"] or 0.0
    said = measured(score, threshold) if score or threshold else ""
    return f"{row['rule'].replace('_', ' ')}  {said}".strip()


def _standing(books: Books, dropped: list[Sample]) -> list[Sample | None]:
    """The kept documents that stand for copies, in their order."""
    kept = {row["id"]: row["kept"] for row in rows_where(books.file(DROPS), "id", _ids(dropped), ["id", "kept"])}
    wanted = sorted({id for id in kept.values() if id})
    columns = ["id", "source", "path", "url", "text"]
    found = {row["id"]: row for row in rows_where(books.file(DOCUMENTS), "id", wanted, columns)}
    nothing = {"rule": "", "dropped": False, "score": None, "threshold": None}
    return [row | nothing if (row := found.get(kept.get(one["id"], ""))) else None for one in dropped]


def _ids(rows: list[Sample]) -> list[str]:
    return [row["id"] for row in rows]


def _at(rows: list[Sample], index: int) -> Sample | None:
    return rows[index] if index < len(rows) else None
