"""What a document is, raw and curated, and how documents are kept: Parquet that anyone can open.

A document carries its source, licence and retrieval date from the first reader on. `path` is a path or address
inside its source, never one of the machine that read it, so that two machines write the same artifact.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

# A row group is what a reader holds at once: few enough bytes that one pass over a corpus needs little memory. It is
# read by the thread that asks: beside workers Arrow's own threads gain nothing, and woke up for a seventh of the time.
GROUP_BYTES = 4_000_000
GROUP_ROWS = 2_000

RAW = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("url", pa.string()),  # empty where it has none
        ("kind", pa.string()),
        ("media", pa.string()),
        ("licence", pa.string()),
        ("retrieved", pa.date32()),
        ("content", pa.binary()),
    ]
)
CURATED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("url", pa.string()),
        ("kind", pa.string()),
        ("page", pa.string()),  # how a page was extracted: article, code or reasoning; empty where it is no page
        ("language", pa.string()),
        ("licence", pa.string()),
        ("retrieved", pa.date32()),
        ("split", pa.string()),
        ("group", pa.string()),  # of the mix: general, reasoning, code or multilingual
        ("topic", pa.string()),  # knowledge class; empty where nothing was classified
        ("quality", pa.float32()),  # 0 to 1; null where nothing was scored
        ("text", pa.string()),
        ("bytes", pa.int32()),
    ]
)
# A row for every document that was dropped. `kept` is the id of the document that stands for it where it is a copy:
# documents with equal `kept`, and that one, are a cluster.
DROPS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("url", pa.string()),
        ("step", pa.string()),
        ("rule", pa.string()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("bytes", pa.int64()),
        ("kept", pa.string()),
    ]
)
# A row for every document that a step changed and let pass: personal data masked, repeated lines taken out.
CHANGES = pa.schema(
    [
        ("id", pa.string()),
        ("step", pa.string()),
        ("rule", pa.string()),
        ("count", pa.int32()),
        ("bytes", pa.int64()),
        ("sample", pa.string()),  # of what was taken out; empty where that is private
    ]
)
# A few documents for each rule that dropped some, and for each step some that passed (rule empty), to look at.
SAMPLES = pa.schema(
    [
        ("step", pa.string()),
        ("rule", pa.string()),
        ("dropped", pa.bool_()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("url", pa.string()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("text", pa.string()),  # its first 2,000 characters
    ]
)


class RawDocument(NamedTuple):
    """What a reader yields: one document as it was found.

    `kind` is code, docs, prose or table (it selects the filters); `media` is html, python, text, markdown, rst or
    csv (it selects the extraction). `url` is the address it came from, empty where it has none.
    """

    path: str
    kind: str
    media: str
    licence: str
    retrieved: date
    content: bytes
    url: str = ""


def document_id(source: str, path: str) -> str:
    """Identity of a document: 16 hexadecimal digits of the SHA-256 of its source and path, not of its content."""
    return hashlib.sha256(f"{source}\0{path}".encode()).hexdigest()[:16]


class Writer:
    """Writes rows as Parquet, one row group at a time. Use in a `with` block; the file is whole when it ends."""

    def __init__(self, path: Path, schema: pa.Schema, weigh: str | None = None, compression: str = "zstd") -> None:
        """`weigh` names the column whose length decides when a row group is full."""
        self._schema = schema
        self._weigh = weigh
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0
        self._file = pq.ParquetWriter(path, schema, compression=compression)

    def write(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        self._bytes += len(row[self._weigh]) if self._weigh else 0
        if self._bytes >= GROUP_BYTES or len(self._rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._bytes = [], 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._file.close()


def raw_parts(folder: Path) -> list[Path]:
    """The files of raw documents of a published `sources`, in their order."""
    return sorted((folder / "documents").glob("*.parquet"))


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file in order, one row group in memory at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=columns, use_threads=False).to_pylist()


def identity(table: pa.Table) -> str:
    """SHA-256 over a table's values without its `retrieved` column: equal for honest runs on different days.

    Each column is hashed as name, type and length-prefixed values, so that the digest depends neither on how the
    table is cut into chunks nor on the bytes that some version of Parquet writes.
    """
    whole = hashlib.sha256()
    for field in table.schema:
        if field.name == "retrieved":
            continue
        whole.update(f"{field.name}\0{field.type}\0".encode())
        whole.update(_column_digest(table.column(field.name)))
    return whole.hexdigest()


def file_identity(path: Path) -> str:
    """`identity` of a Parquet file, for `Draft.identify`; one row group of one column is in memory at a time."""
    whole = hashlib.sha256()
    with pq.ParquetFile(path) as file:
        for field in file.schema_arrow:
            if field.name == "retrieved":
                continue
            whole.update(f"{field.name}\0{field.type}\0".encode())
            digest = hashlib.sha256()
            for group in range(file.num_row_groups):
                _add_values(digest, file.read_row_group(group, [field.name], use_threads=False).column(0))
            whole.update(digest.digest())
    return whole.hexdigest()


def _column_digest(column: pa.ChunkedArray) -> bytes:
    digest = hashlib.sha256()
    _add_values(digest, column)
    return digest.digest()


def _add_values(digest: Any, column: pa.ChunkedArray) -> None:
    for chunk in column.chunks:
        for start in range(0, len(chunk), GROUP_ROWS):
            for value in chunk.slice(start, GROUP_ROWS).to_pylist():
                data = _value_bytes(value)
                digest.update(struct.pack("<q", -1 if data is None else len(data)))
                digest.update(data or b"")


def _value_bytes(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, float):
        return struct.pack("<d", value)
    return str(value).encode()
