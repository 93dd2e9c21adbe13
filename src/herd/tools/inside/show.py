"""How a value is shown: compact text for a model and a person, and a JSON value for programs.

Only types decide what is shown (`type(x)`, not `x.__class__`, which code can fake). Nothing is iterated that might not
end: a generator is named, not run.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd

SERIES_LINES, TABLE_ROWS, TABLE_COLUMNS, LIST_ITEMS = 20, 12, 12, 20
VALUE_ROWS, VALUE_COLUMNS = 200, 50  # what the JSON value carries at most
CELL_CHARACTERS, TEXT_CHARACTERS = 60, 2_000
WHOLE_BELOW = 2**63  # larger integers travel as text

Atom = str | int | float | bool | None


def number(value: float) -> str:
    """At least six significant digits, whole part in full, no noise: 0.1 + 0.2 is 0.3, 1234567.891 is 1234567.89."""
    if not math.isfinite(value):
        return "missing" if math.isnan(value) else str(value)
    size = abs(value)
    if size and not 1e-6 <= size < 1e16:
        return f"{value:.6g}"
    decimals = 6 if size == 0 else max(2, 5 - math.floor(math.log10(size)))
    text = f"{value:.{decimals}f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def atom(value: Any) -> Atom:
    """A scalar as JSON: dates as ISO text, missing values as None, anything else as its text, cut."""
    kind = type(value)
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if kind is bool or kind is np.bool_:
        return bool(value)
    if issubclass(kind, (int, np.integer)):
        whole = int(value)
        return whole if abs(whole) < WHOLE_BELOW else digits(whole)
    if issubclass(kind, (float, np.floating)):
        real = float(value)
        return None if math.isnan(real) else real if math.isfinite(real) else str(real)
    if issubclass(kind, np.datetime64):
        return atom(pd.Timestamp(value))
    if issubclass(kind, pd.Timestamp):
        return None if value is pd.NaT else stamp(value)
    if issubclass(kind, tuple):
        return " / ".join(cell(part) for part in value)[:TEXT_CHARACTERS]
    return str(value)[:TEXT_CHARACTERS]


def digits(whole: int) -> str:
    """A large integer in full, or its size where it is too long to read."""
    bits = whole.bit_length()
    return str(whole) if bits <= 4096 else f"an integer of about {int(bits * math.log10(2)):,} digits"


def stamp(value: pd.Timestamp) -> str:
    """An ISO date, with the time of day only where there is one."""
    return value.date().isoformat() if value == value.normalize() and value.tz is None else value.isoformat(sep=" ")


def cell(value: Any) -> str:
    """A scalar as a person reads it in a line or a cell."""
    plain = atom(value)
    if plain is None:
        return "missing"
    if isinstance(plain, float):
        return number(plain)
    text = " ".join(str(plain).split())
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 3] + "..."


def numbered_rows(index: pd.Index) -> bool:
    """Whether an index only numbers rows, so that showing it would tell nothing."""
    return index.name is None and not isinstance(index, pd.MultiIndex) and index.dtype.kind in "iu"


def text_of(value: Any) -> str:
    """What is shown of the last expression's value; None shows nothing."""
    kind = type(value)
    if value is None:
        return ""
    if issubclass(kind, str):
        return str(value)
    if issubclass(kind, pd.Series):
        return _series_text(value)
    if issubclass(kind, pd.DataFrame):
        return _table_text(value)
    if issubclass(kind, pd.Index):
        return _items_text([value[i] for i in range(min(len(value), LIST_ITEMS))], len(value), "[]")
    if issubclass(kind, np.ndarray):
        return _table_text(pd.DataFrame(value)) if value.ndim == 2 else _array_text(value)
    if kind in (list, tuple, set, frozenset):
        brackets = {list: "[]", tuple: "()", set: "{}", frozenset: "{}"}[kind]
        return _items_text(list(itertools.islice(value, LIST_ITEMS)), len(value), brackets)
    if kind is dict:
        pairs = [f"{_quoted(k)}: {_quoted(v)}" for k, v in itertools.islice(value.items(), LIST_ITEMS)]
        return "{" + ", ".join(pairs + _more(len(value), LIST_ITEMS)) + "}"
    if _scalar(kind):
        return cell(value)
    return repr(value)[:TEXT_CHARACTERS]


def _scalar(kind: type) -> bool:
    scalars = (bool, int, float, np.generic, pd.Timestamp, pd.Timedelta, pd.Period, type(pd.NaT), type(pd.NA))
    return issubclass(kind, scalars)


def _more(total: int, shown: int) -> list[str]:
    return [f"... {total - shown:,} more"] if total > shown else []


def _quoted(value: Any) -> str:
    """An item of a list or dictionary: text in quotes, collections inside by their own text."""
    if type(value) is str:
        return repr(cell(value))
    return cell(value) if value is None or _scalar(type(value)) else " ".join(text_of(value).split("\n"))[:500]


def _items_text(items: list[Any], total: int, brackets: str) -> str:
    return brackets[0] + ", ".join([_quoted(item) for item in items] + _more(total, len(items))) + brackets[1]


def _array_text(value: np.ndarray[Any, Any]) -> str:
    if value.ndim == 0:
        return cell(value[()])
    if value.ndim > 2:
        return f"array of shape {value.shape}"
    return _items_text(list(value[:LIST_ITEMS]), len(value), "[]")


def _series_text(series: pd.Series) -> str:
    if not len(series):
        return "(no rows)"
    head = series.iloc[:SERIES_LINES]
    lines = [f"{cell(label)}: {cell(item)}" for label, item in zip(head.index, head, strict=True)]
    return "\n".join(lines + _more(len(series), SERIES_LINES))


def _labelled(table: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    """Column titles and the cells by column, with the index as first columns unless it only numbers the rows."""
    titles, columns = [], []
    if not numbered_rows(table.index):
        for level, name in enumerate(table.index.names):
            titles.append("" if name is None else cell(name))
            columns.append(list(table.index.get_level_values(level)))
    titles += [cell(name) for name in table.columns]
    columns += [list(table.iloc[:, position]) for position in range(table.shape[1])]
    return titles, columns


def _table_text(table: pd.DataFrame) -> str:
    rows, width = table.shape
    titles, columns = _labelled(table.iloc[:TABLE_ROWS, :TABLE_COLUMNS])
    lines = [" | ".join(titles)] + [" | ".join(cell(item) for item in row) for row in zip(*columns, strict=True)]
    if not rows:
        lines.append("(no rows)")
    if rows > TABLE_ROWS:
        lines.append(f"... {rows - TABLE_ROWS:,} more rows")
    if width > TABLE_COLUMNS:
        lines.append(f"... {width - TABLE_COLUMNS:,} more columns")
    return "\n".join(lines)


def value_of(value: Any) -> dict[str, Any] | None:
    """The value as JSON (kinds: number, text, bool, missing, series, table, list); None for None."""
    kind = type(value)
    if value is None:
        return None
    if issubclass(kind, np.ndarray):
        if value.ndim == 0:
            return value_of(value[()])
        value = pd.DataFrame(value) if value.ndim == 2 else list(value[:VALUE_ROWS])
        kind = type(value)
    if kind is dict:
        keys = list(itertools.islice(value, VALUE_ROWS))
        return {
            "kind": "series",
            "index": [atom(k) for k in keys],
            "values": [atom(value[k]) for k in keys],
            "name": None,
        }
    if issubclass(kind, pd.Series):
        head = value.iloc[:VALUE_ROWS]
        name = None if head.name is None else str(atom(head.name))
        return {
            "kind": "series",
            "index": [atom(x) for x in head.index],
            "values": [atom(x) for x in head],
            "name": name,
        }
    if issubclass(kind, pd.DataFrame):
        titles, columns = _labelled(value.iloc[:VALUE_ROWS, :VALUE_COLUMNS])
        rows = [[atom(item) for item in row] for row in zip(*columns, strict=True)]
        return {"kind": "table", "columns": titles, "rows": rows, "total_rows": len(value)}
    if kind in (list, tuple, set, frozenset) or issubclass(kind, pd.Index):
        return {"kind": "list", "values": [atom(item) for item in itertools.islice(value, VALUE_ROWS)]}
    plain = atom(value)
    if plain is None:
        return {"kind": "missing", "value": None}
    name = "bool" if isinstance(plain, bool) else "number" if isinstance(plain, (int, float)) else "text"
    return {"kind": name, "value": plain}
