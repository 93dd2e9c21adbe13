"""Reads a CSV file's bytes as a table, and says what had to be done to it; describes a table for a prompt.

Whatever is wrong with a file is either repaired and noted, or an error that says what. Text stays text: a cell that a
spreadsheet would run as a formula is never evaluated here, numbers written with currency or percent signs or thousands
separators, or with leading zeros, are not converted. Dates are, where a whole column has one of DATE_FORMATS, and
decimal commas in files separated by semicolons.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from herd.tools.inside import show

MAX_COLUMNS = 1_000
NAME_CHARACTERS = 200
ROWS_LOOKED_AT = 5_000  # for numbers with leading zeros
SNIFF_CHARACTERS = 65_536
DELIMITERS = (",", ";", "\t", "|")
DATE_FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M:%S.%f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%S.%fZ",
    "%Y/%m/%d",
    "%d.%m.%Y",
    "%d %b %Y",
    "%d %B %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%d-%b-%Y",
)
SLASHED = ("%d/%m/%Y", "%m/%d/%Y")  # taken only where the column's values allow just one of them
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?")
DECORATED = re.compile(r"[+-]?[$€£¥]?\s?[+-]?\d[\d,. ]*\s?[%$€£¥]?")
FORMULA = re.compile(r"[=@]|[+-](?![\d.,\s]*$|[\d.,]+[%eE])")
COMMON, EXAMPLE_CHARACTERS = 6, 30


class Unreadable(ValueError):
    """A file that is not a table; the message says why."""


def parse(data: bytearray, suffix: str) -> tuple[pd.DataFrame, list[str]]:
    """The table in `data`, which is emptied, and notes on what was repaired. Raises Unreadable."""
    notes: list[str] = []
    text = _decoded(data, notes)
    data.clear()  # the memory of a session is small: a large file is held once
    if "\0" in text:
        notes.append(f"{text.count(chr(0)):,} NUL bytes removed")
        text = text.replace("\0", "")
    if "\r" in text and "\n" not in text:
        text = text.replace("\r", "\n")
    if not text.strip():
        raise Unreadable("the file holds no text")
    delimiter = "\t" if suffix == ".tsv" else _delimiter(text)
    if hint := re.match(r"sep=([,;|\t])\r?\n", text):  # a line that spreadsheets write
        delimiter, text = hint[1], text[hint.end() :]
    quoting = csv.QUOTE_MINIMAL
    if text.count('"') % 2 == 1:
        quoting = csv.QUOTE_NONE
        notes.append("a quotation mark is never closed: quotation marks are read as plain characters")
    shape = _shape(text, delimiter, quoting, notes)
    names = _names(shape.header, notes)
    if not shape.regular:
        text = _rewritten(text, delimiter, quoting, shape)
    content = io.BytesIO(text.encode())
    content.seek(len(text[: shape.body].encode()) if shape.regular else 0)
    del text
    table = pd.read_csv(
        content,
        sep=delimiter if shape.regular else ",",
        header=None,
        names=names,
        index_col=False,
        skipinitialspace=True,
        low_memory=False,
        dtype={names[position]: str for position in shape.zeros},  # type: ignore[arg-type]
    )
    if shape.zeros:
        notes.append(f"kept as text because of leading zeros: {_listed([names[i] for i in sorted(shape.zeros)])}")
    table = _without_empty(table, shape.header, notes)
    if delimiter == ";":
        _decimal_commas(table, notes)
    _dates(table, notes)
    _note_texts(table, notes)
    if table.empty:
        notes.append("the table has no rows")
    return table, notes


def _without_empty(table: pd.DataFrame, header: list[str], notes: list[str]) -> pd.DataFrame:
    """Without columns that have neither a name nor a value, as a delimiter at the end of each line makes."""
    empty = [i for i, name in enumerate(header) if not name.strip() and table.iloc[:, i].isna().all()]
    if not empty or len(empty) == len(header):
        return table
    notes.append(f"{len(empty)} columns without name and values left out")
    return table.drop(columns=[table.columns[i] for i in empty])


def _decoded(data: bytearray, notes: list[str]) -> str:
    """The bytes as text: by byte order mark, else UTF-8, else Windows-1252, else Latin-1 (which takes anything)."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                notes.append(f"not valid {encoding}: bad bytes replaced")
                return data.decode(encoding, errors="replace")
    with contextlib.suppress(UnicodeDecodeError):
        return data.decode("utf-8")
    sample = data[:SNIFF_CHARACTERS]
    if sample.count(b"\0") > len(sample) // 10:
        raise Unreadable("it is binary data, not text")
    for encoding in ("cp1252", "latin-1"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        notes.append(f"not UTF-8: read as {encoding}")
        return text
    raise AssertionError("latin-1 decodes any bytes")


def _delimiter(text: str) -> str:
    """The delimiter that splits the first lines into the most columns most evenly; a comma where none does."""
    lines = text[:SNIFF_CHARACTERS].splitlines()
    lines = [
        line for line in (lines[:-1] if len(text) > SNIFF_CHARACTERS and len(lines) > 1 else lines) if line.strip()
    ]
    best, best_score = ",", 0.0
    for delimiter in DELIMITERS:
        widths = [len(row) for row in csv.reader(lines[:200], delimiter=delimiter)]
        width, count = Counter(widths).most_common(1)[0] if widths else (1, 0)
        score = (count / len(widths)) * (width if width > 1 and widths[0] > 1 else 0) if widths else 0.0
        if score > best_score:
            best, best_score = delimiter, score
    return best


class Shape(NamedTuple):
    """What a first pass over a file's rows finds: names, where the rows begin in the text, whether they are regular."""

    header: list[str]
    body: int
    regular: bool
    zeros: frozenset[int]  # positions of columns with numbers like 007, among the first rows


def _lines(text: str) -> Iterator[str]:
    """The lines with their ends, without the copy of four bytes a character that io.StringIO makes."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _shape(text: str, delimiter: str, quoting: int, notes: list[str]) -> Shape:
    """Count the cells of each row, and note what will be left out or filled up."""
    csv.field_size_limit(1 << 30)
    rows = csv.reader(_lines(text), delimiter=delimiter, quoting=quoting, skipinitialspace=True)  # type: ignore[arg-type]
    header = next(row for row in rows if any(cell.strip() for cell in row))
    above = rows.line_num
    zeros: set[int] = set()
    widths: Counter[int] = Counter()
    blank = 0
    for number, row in enumerate(rows):
        if not row or (len(row) == 1 and not row[0].strip()):
            blank += bool(row)
            continue
        widths[len(row)] += 1
        if number < ROWS_LOOKED_AT:
            zeros.update(i for i, cell in enumerate(row) if cell[:1] == "0" and cell[1:].isdigit())
    usual = widths.most_common(1)[0][0] if widths else len(header)
    if all(NUMBER.fullmatch(cell.strip()) for cell in header):
        notes.append("the first line holds only numbers: it is read as a row, and columns are numbered")
        header, above = [""] * len(header), 0
    if usual > len(header):
        notes.append(f"the header has {len(header)} names for {usual} columns: the last ones are unnamed")
        header = header + [""] * (usual - len(header))
    width = len(header)
    if width > MAX_COLUMNS:
        raise Unreadable(f"it has {width:,} columns; at most {MAX_COLUMNS:,} are read")
    long = sum(count for size, count in widths.items() if size > width)
    short = sum(count for size, count in widths.items() if size < width)
    if long:
        notes.append(f"{long:,} rows with more cells than the header's {width} left out")
    if short:
        notes.append(f"{short:,} rows with fewer cells than the header's {width} filled up with missing values")
    regular = not (long or short or blank or quoting == csv.QUOTE_NONE)
    body = sum(len(line) for line in itertools.islice(_lines(text), above))
    return Shape(header, body, regular, frozenset(i for i in zeros if i < width))


def _rewritten(text: str, delimiter: str, quoting: int, shape: Shape) -> str:
    """The rows as CSV with commas, each as wide as the header; longer ones and blank lines left out."""
    kept = io.StringIO()
    writer = csv.writer(kept)
    width = len(shape.header)
    body = _lines(text[shape.body :])
    for row in csv.reader(body, delimiter=delimiter, quoting=quoting, skipinitialspace=True):  # type: ignore[arg-type]
        if row and len(row) <= width and (len(row) > 1 or row[0].strip()):
            writer.writerow(row + [""] * (width - len(row)))
    return kept.getvalue()


def _names(header: list[str], notes: list[str]) -> list[str]:
    """Column names: stripped, none empty, none twice; each change noted."""
    printable = ["".join(c if c.isprintable() else " " for c in name) for name in header]
    stripped = [" ".join(name.split())[:NAME_CHARACTERS] for name in printable]
    if any(a != b for a, b in zip(header, stripped, strict=True)):
        notes.append("spaces around column names removed")
    names: list[str] = []
    unnamed, doubled, taken = [], [], set[str]()
    for position, name in enumerate(stripped, 1):
        if not name:
            name = f"column {position}"
            unnamed.append(name)
        base, copy = name, 2
        while name in taken:
            name, copy = f"{base}.{copy}", copy + 1
        if name != base:
            doubled.append(name)
        names.append(name)
        taken.add(name)
    if unnamed:
        notes.append(f"{len(unnamed)} columns without a name called {_listed(unnamed)}")
    if doubled:
        notes.append(f"column names that occur twice renamed: {_listed(doubled)}")
    return names


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:EXAMPLE_CHARACTERS] for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _texts(table: pd.DataFrame) -> list[tuple[int, pd.Series]]:
    """Position and values, without missing ones, of the columns that hold text."""
    found = []
    for position in range(table.shape[1]):
        column = table.iloc[:, position]
        if not pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_datetime64_any_dtype(column):
            values = column.dropna()
            if len(values):
                found.append((position, values.astype(str)))
    return found


def _decimal_commas(table: pd.DataFrame, notes: list[str]) -> None:
    """Read text columns whose every value is a number with a decimal comma as numbers, in place."""
    read = []
    for position, values in _texts(table):
        if values.str.contains(",", regex=False).any() and values.str.fullmatch(DECIMAL_COMMA.pattern).all():
            name = table.columns[position]
            plain = table[name].str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
            table[name] = pd.to_numeric(plain)
            read.append(name)
    if read:
        notes.append(f"decimal commas read as numbers: {_listed(read)}")


def _dates(table: pd.DataFrame, notes: list[str]) -> None:
    """Turn text columns whose every value is a date of one form into dates, in place."""
    read = []
    for position, values in _texts(table):
        first = values.iloc[0].strip()
        if not (6 <= len(first) <= 25 and any(c.isdigit() for c in first)):
            continue
        fitting = [form for form in DATE_FORMATS if _fits(values, form)]
        slashed = [form for form in SLASHED if _fits(values, form)] if "/" in first else []
        if not fitting and len(slashed) == 2:
            notes.append(f"{table.columns[position]}: day and month can't be told apart; kept as text")
            continue
        for form in (fitting + slashed)[:1]:
            name = table.columns[position]
            table[name] = pd.to_datetime(table[name].str.strip(), format=form)
            read.append(name)
    if read:
        notes.append(f"read as dates: {_listed(read)}")


def _fits(values: pd.Series, form: str) -> bool:
    """Whether every value is a date written in `form`; the first ones are tried alone, which is quick."""
    for part in (values.iloc[:5], values):
        if pd.to_datetime(part.str.strip(), format=form, errors="coerce").isna().any():
            return False
    return True


def _note_texts(table: pd.DataFrame, notes: list[str]) -> None:
    """Note columns of numbers written with signs, and cells that a spreadsheet would take for formulas."""
    decorated, formulas = [], 0
    for position, values in _texts(table):
        starts = values[values.str.slice(0, 1).isin(["=", "+", "-", "@"])]
        formulas += sum(1 for value in starts if FORMULA.match(value))
        if values.str.fullmatch(DECORATED.pattern).all():
            decorated.append(table.columns[position])
    if decorated:
        notes.append(f"numbers written with separators or signs are kept as text: {_listed(decorated)}")
    if formulas:
        notes.append(f"{formulas:,} cells look like spreadsheet formulas; they are plain text and are never run")


def facts(table: Any) -> dict[str, Any]:
    """{"rows", "columns": [{"name", "kind", "missing", "distinct", "examples"}]} of a table as it is now."""
    if not isinstance(table, pd.DataFrame):
        raise Unreadable(f"it is no longer a table but a {type(table).__name__}")
    columns = [_column(str(table.columns[i]), table.iloc[:, i]) for i in range(min(table.shape[1], MAX_COLUMNS))]
    return {"rows": len(table), "columns": columns}


def _column(name: str, values: pd.Series) -> dict[str, Any]:
    """One column's facts: smallest and largest for numbers and dates, the most common values for the rest."""
    present = values.dropna()
    kinds = set(present.map(type)) if values.dtype == object else set()
    if pd.api.types.is_bool_dtype(values) or kinds == {bool}:
        kind = "bool"
    elif pd.api.types.is_datetime64_any_dtype(values):
        kind = "date"
    else:
        kind = "number" if pd.api.types.is_numeric_dtype(values) else "text"
    if kind not in ("number", "date"):
        present = present.astype(str)
    counts = present.value_counts()
    if kind in ("number", "date"):
        ends = (present.min(), present.max()) if len(present) else ()
        examples = [show.cell(np.asarray(end)[()] if kind == "number" else end) for end in ends]
    else:
        examples = [" ".join(str(value).split()) for value in counts.index[:COMMON]]
    cut = [e if len(e) <= EXAMPLE_CHARACTERS else e[: EXAMPLE_CHARACTERS - 3] + "..." for e in examples]
    missing = int(len(values) - len(present))
    return {"name": name, "kind": kind, "missing": missing, "distinct": len(counts), "examples": cut}
