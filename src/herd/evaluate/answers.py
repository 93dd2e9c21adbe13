"""Questions about tables and whether an executed answer is right."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from herd.artifact import canonical_json
from herd.console import HerdError

Value = Mapping[str, Any]  # what a call gave, as the sandbox reports it (tools/sandbox.py)
RELATIVE = 1e-6


@dataclass(frozen=True)
class TableQuestion:
    """A question about one table with the value that the right code gives.

    `gold` None: a question that needs no tool; right is then an answer in words without a call. `code` holds the gold
    calls. `phrasing` says whether the sentence's template may be trained on.
    """

    id: str
    table: str
    kind: str
    text: str
    code: tuple[str, ...]
    gold: Value | None
    phrasing: Literal["train", "held-out"]
    split: Literal["sample", "dev", "test"]


def write_questions(path: Path, questions: Iterable[TableQuestion]) -> None:
    """One JSON line a question."""
    path.write_text("".join(canonical_json(asdict(question)) + "\n" for question in questions), encoding="utf-8")


def read_questions(path: Path) -> list[TableQuestion]:
    """Inverse of `write_questions`. Raises HerdError naming the line that is no question."""
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            questions.append(TableQuestion(**{**row, "code": tuple(row["code"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise HerdError(f"{path}:{number}: not a question ({error})") from None
    return questions


def is_right(value: Value | None, gold: Value) -> bool:
    """Whether a call's value says what the gold value says.

    Numbers agree to one in a million; a series label by label in any order; lists and tables as multisets of entries
    and rows. A number and the same number as the only entry of a series, list or table are the same answer.
    """
    if value is None:
        return False
    mine, right = _entries(value), _entries(gold)
    if [len(row) for row in mine] != [len(row) for row in right]:
        mine, right = _unlabelled(value, mine), _unlabelled(gold, right)
    return _same(mine, right)


def _unlabelled(value: Value, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The only entry of a series without its label."""
    return [rows[0][1:]] if value["kind"] == "series" and len(rows) == 1 else rows


def _entries(value: Value) -> list[tuple[Any, ...]]:
    """Any value as a list of tuples: a scalar is one tuple of one, a series tuples of label and value."""
    kind = value.get("kind")
    if kind == "series":
        return list(zip(value["index"], value["values"], strict=True))
    if kind == "list":
        return [(item,) for item in value["values"]]
    if kind == "table":
        return [tuple(row) for row in value["rows"]]
    return [(value.get("value"),)]


def _same(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]) -> bool:
    if len(first) != len(second):
        return False
    left = list(second)
    for row in first:
        found = next((i for i, other in enumerate(left) if _same_row(row, other)), None)
        if found is None:
            return False
        left.pop(found)
    return True


def _same_row(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return len(first) == len(second) and all(map(_same_scalar, first, second))


def _same_scalar(first: Any, second: Any) -> bool:
    one, other = _number(first), _number(second)
    if one is not None and other is not None:
        return math.isclose(one, other, rel_tol=RELATIVE, abs_tol=1e-9)
    return str(first).strip() == str(second).strip()


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
