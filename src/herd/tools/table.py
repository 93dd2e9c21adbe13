"""What is known of a table without reading it on the host: its facts, and which files may be opened at all."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from herd.console import HerdError, human_bytes

MAX_FILE_BYTES = 200_000_000
SUFFIXES = (".csv", ".tsv", ".txt")
KINDS = ("number", "text", "date", "bool")

Kind = Literal["number", "text", "date", "bool"]


@dataclass(frozen=True)
class Column:
    """A column: for text and bool the most common values, for number and date the smallest and the largest."""

    name: str
    kind: Kind
    missing: int
    distinct: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class TableFacts:
    """A table: its file's stem, its rows and columns, and what had to be done to read it."""

    name: str
    rows: int
    columns: tuple[Column, ...]
    notes: tuple[str, ...]


def open_file(path: Path, limit: int = MAX_FILE_BYTES) -> tuple[BinaryIO, int]:
    """The file at `path`, open for reading, and its size in bytes.

    Raises HerdError where it is no regular file of a supported kind, is empty, or is larger than `limit`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise HerdError(f"{path.name}: this kind of file is not supported; expected {', '.join(SUFFIXES)}")
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe must not block here
    except OSError as error:
        raise HerdError(f"{path}: {(error.strerror or str(error)).lower()}; expected a readable file") from None
    found = os.fstat(descriptor)
    problem = None
    if not stat.S_ISREG(found.st_mode):
        problem = "not a regular file; expected a CSV file"
    elif found.st_size == 0:
        problem = "the file is empty (0 bytes); expected a header line and rows"
    elif found.st_size > limit:
        problem = f"the file has {human_bytes(found.st_size)}; at most {human_bytes(limit)} are read"
    if problem is not None:
        os.close(descriptor)
        raise HerdError(f"{path.name}: {problem}")
    return os.fdopen(descriptor, "rb"), found.st_size


def read_facts(reply: object, name: str) -> TableFacts:
    """Facts out of a session's reply, which may be hostile. Raises ValueError where it isn't what facts look like."""
    if not isinstance(reply, dict):
        raise ValueError("not an object")
    columns = reply.get("columns")
    notes = reply.get("notes", [])
    if not isinstance(columns, list) or not isinstance(notes, list):
        raise ValueError("no columns")
    return TableFacts(
        name=name,
        rows=_count(reply.get("rows")),
        columns=tuple(_read_column(column) for column in columns),
        notes=tuple(_text(note) for note in notes),
    )


def _read_column(column: object) -> Column:
    if not isinstance(column, dict) or column.get("kind") not in KINDS or not isinstance(column.get("examples"), list):
        raise ValueError("not a column")
    return Column(
        name=_text(column.get("name")),
        kind=cast(Kind, column["kind"]),
        missing=_count(column.get("missing")),
        distinct=_count(column.get("distinct")),
        examples=tuple(_text(example) for example in column["examples"]),
    )


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("not a count")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")
    return value
