"""Files of rows, a document a row: JSON lines and Parquet.

A row's text is its column `text`, or `content`; `url`, `licence` (or `license`) and a day (`retrieved`, `date` or
`timestamp`) are taken where they are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from herd.data.documents import RawDocument
from herd.data.extract import is_text
from herd.data.files import DAMAGED, MAX_FILE_BYTES, MAX_RATIO, Skipped

MAX_LICENCE_CHARACTERS = 100
MAX_URL_CHARACTERS = 2_048
TEXT = ("text", "content")
LICENCE = ("licence", "license")
DAY = ("retrieved", "date", "timestamp")
# Rows in memory at once: sixteen of the largest documents are 320 MB, and small batches cost 3 microseconds a row.
_BATCH_ROWS = 16


def row_document(
    path: str, row: Mapping[str, Any], licence: str, day: date, skipped: Skipped, text: tuple[str, ...] = TEXT
) -> RawDocument | None:
    """The document of a row whose text is in the first column of `text` that is there; None, and a count, else."""
    found = next((row[name] for name in text if row.get(name) is not None), None)
    content = found if isinstance(found, bytes) else found.encode("utf-8", "replace") if isinstance(found, str) else b""
    if not content.strip():
        skipped["row without text"] += 1
        return None
    if len(content) > MAX_FILE_BYTES or not is_text(content, "text"):
        skipped["row too large or not text"] += 1
        return None
    own = next((_string(row[name]) for name in LICENCE if _string(row.get(name))), licence)[:MAX_LICENCE_CHARACTERS]
    days = (day_of(row[name]) for name in DAY if row.get(name) is not None)
    then = next((found for found in days if found), day)
    return RawDocument(path, "prose", "text", own, then, content, clean_url(_string(row.get("url"))))


def _string(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def clean_url(url: str) -> str:
    """An address as documents carry it; empty where it is none, or longer than any browser takes."""
    url = url.strip().removeprefix("<").removesuffix(">")  # WARC 1.0 was widely read as asking for the brackets
    usable = len(url) <= MAX_URL_CHARACTERS and url.isprintable() and " " not in url
    return url if usable and ":" in url else ""


def day_of(value: Any) -> date | None:
    """The day of a date, a time or an ISO 8601 text; None where it is none."""
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(_string(value)[:10])
    except ValueError:
        return None


def jsonl_rows(stream: BinaryIO, size: int, skipped: Skipped) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows (from 1, as editors count lines); a line that isn't a JSON object is counted, not fatal.

    `size` is that of the file before decompression: far more than text can be compressed to ends the reading.
    """
    limit = 2 * MAX_FILE_BYTES  # JSON escapes can double a text
    budget = max(limit + MAX_FILE_BYTES, MAX_RATIO * size)
    number = 0
    whole = True  # whether the next bytes begin a line
    try:
        while line := stream.readline(limit):
            budget -= len(line)
            if budget < 0:
                skipped["decompression bomb"] += 1
                return
            begins, whole = whole, line.endswith(b"\n")
            number += begins
            if begins and not whole and len(line) == limit:
                skipped["row too large or not text"] += 1
            if not begins or (not whole and len(line) == limit) or not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield number, row
            else:
                skipped["malformed line"] += 1
    except DAMAGED:
        skipped["unreadable"] += 1


def parquet_rows(stream: BinaryIO, skipped: Skipped) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows (from 1) with the columns that are of use."""
    try:
        # Read as it is asked for: a row group of gigabytes is not held.
        with pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False) as file:
            names = [name for name in (*TEXT, "url", *LICENCE, *DAY) if name in file.schema_arrow.names]
            if not set(names) & set(TEXT):
                skipped["Parquet file without a column 'text' or 'content'"] += 1
                return
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=names):
                columns = {name: _values(batch.column(name)) for name in names}
                for row in range(batch.num_rows):
                    number += 1
                    yield number, {name: values[row] for name, values in columns.items()}
    except (*DAMAGED, ValueError, OverflowError):
        skipped["unreadable"] += 1


def _values(column: pa.Array) -> list[Any]:
    """Values of a column, strings as bytes: what isn't UTF-8 is then one bad row, not a bad file."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(kind).cast(pa.large_binary()).to_pylist()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.to_pylist()
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        try:
            return column.cast(pa.date32(), safe=False).to_pylist()
        except (ValueError, OverflowError):  # a day before the year 1 or after 9999
            pass
    return [None] * len(column)
