"""Reading a folder of files: web archives, rows, pages, text, code, notebooks and tables, by their endings.

A reader yields documents and counts what it had to leave out, by reason. Files are skipped one by one: a bad file
never stops the rest, and the counts end up in `sources.json`. A folder is read in units, groups of files that depend
on nothing but the files' names and sizes, so that many processes can read it and write the same corpus.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from herd.data.documents import RawDocument
from herd.data.extract import decode, is_text
from herd.data.files import (
    DAMAGED,
    LARGER,
    MAX_FILE_BYTES,
    Place,
    Skipped,
    decompressed,
    files,
    open_file,
    place,
)
from herd.data.files import Unavailable as Unavailable
from herd.data.files import listing as listing
from herd.data.files import walk_files as walk_files
from herd.data.rows import jsonl_rows, parquet_rows, row_document
from herd.recipe_data import Folder

MAX_TABLE_ROWS = 40  # as [[data.source]] kind "tables" does by default
UNIT_BYTES = 64_000_000
MAX_CELLS = 10_000  # of a notebook

# Ending -> (kind, media). Containers of rows and records are read by `_contained` instead.
ENDINGS = {
    ".txt": ("prose", "text"),
    ".md": ("docs", "markdown"),
    ".markdown": ("docs", "markdown"),
    ".rst": ("docs", "rst"),
    ".tex": ("docs", "text"),
    ".html": ("docs", "html"),
    ".htm": ("docs", "html"),
    ".xhtml": ("docs", "html"),
    ".py": ("code", "python"),
    ".pyi": ("code", "python"),
    ".ipynb": ("code", "text"),
    ".csv": ("table", "csv"),
}
_CODE = """
    adb ads asm awk bash bat c cc cl clj cljs cmake coffee cpp cs cu cuh cxx d dart el erl ex exs f f03 f90 f95 fish
    for fs fsx go gradle graphql groovy h hh hpp hrl hs hxx java jl js jsx kt kts lisp lua m mjs ml mli mm nim nix pas
    php pl pm proto ps1 purs pyx r rb rkt rs s scala scm sh sol sql sv svelte swift tcl tf ts tsx v vb vhd vhdl vue
    zig zsh
""".split()  # noqa: SIM905 (as a list it is a screen long)
ENDINGS |= {f".{ending}": ("code", "text") for ending in _CODE}
# Files that are known by their whole name, in lower case.
NAMES = {
    "makefile": ("code", "text"),
    "gnumakefile": ("code", "text"),
    "dockerfile": ("code", "text"),
    "cmakelists.txt": ("code", "text"),
    "readme": ("docs", "text"),
}
ROWS = (".jsonl", ".ndjson", ".parquet")
ARCHIVES = (".warc", ".wet")
COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True)
class Unit:
    """Files of a folder source that are read together: paths inside the folder with their sizes in bytes, in order."""

    source: str
    files: tuple[tuple[str, int], ...]


def units(source: Folder, base: Path, unit_bytes: int, skipped: Skipped) -> list[Unit]:
    """A folder's files in the order of their paths, grouped up to `unit_bytes`; a larger file is a unit of its own.

    `base` is the folder of the recipe file. Raises Unavailable where the folder isn't there.
    """
    groups: list[list[tuple[str, int]]] = []
    total = unit_bytes
    for file in files(place(source.path, base), skipped):
        if not _known(file.path):
            skipped["other kind of file"] += 1
            continue
        if total + file.size > unit_bytes or not groups:
            groups.append([])
            total = 0
        groups[-1].append((file.path, file.size))
        total += file.size
    return [Unit(source.name, tuple(group)) for group in groups]


def read_unit(source: Folder, base: Path, unit: Unit, skipped: Skipped) -> Iterator[RawDocument]:
    """Documents of a unit's files, in order. Raises Unavailable where the folder is gone."""
    where = place(source.path, base)
    for path, _ in unit.files:
        yield from _read(where, path, source.licence, skipped)


def read_folder(source: Folder, base: Path, skipped: Skipped) -> Iterator[RawDocument]:
    """Documents of a folder; `base` is the folder of the recipe file. Raises Unavailable where it isn't there."""
    for unit in units(source, base, UNIT_BYTES, skipped):
        yield from read_unit(source, base, unit, skipped)


def _split(path: str) -> tuple[str, str, str]:
    """A path's file name without its endings, its ending, and the ending of its compression, in lower case."""
    name = PurePosixPath(path)
    compression = name.suffix.lower() if name.suffix.lower() in COMPRESSED else ""
    name = PurePosixPath(name.stem) if compression else name
    return name.stem, name.suffix.lower(), compression


def _known(path: str) -> bool:
    _, ending, compression = _split(path)
    if ending == ".warc" and compression == ".zst":
        return False  # their frames need a dictionary that the file carries
    return ending in ENDINGS or ending in ROWS or ending in ARCHIVES or PurePosixPath(path).name.lower() in NAMES


def _read(where: Place, path: str, licence: str, skipped: Skipped) -> Iterator[RawDocument]:
    stem, ending, _ = _split(path)
    try:
        with open_file(where, path) as (stream, size, day):
            if ending in ARCHIVES:
                from herd.data.warc import read_warc

                yield from read_warc(stream, size, path, licence, day, skipped)
            elif ending in ROWS:
                yield from _contained(stream, size, path, ending, licence, day, skipped)
            else:
                kind, media = NAMES.get(PurePosixPath(path).name.lower()) or ENDINGS[ending]
                content = _content(stream, size, path, media, skipped)
                if content and kind == "table":
                    content = render_table(stem, content, MAX_TABLE_ROWS)
                    skipped["not a table"] += not content
                elif content and ending == ".ipynb":
                    content = render_notebook(content)
                    skipped["not a notebook"] += not content
                if content:
                    yield RawDocument(path, kind, media, licence, day, content)
    except OSError:
        skipped["unreadable"] += 1


def _contained(
    stream: BinaryIO, size: int, path: str, ending: str, licence: str, day: date, skipped: Skipped
) -> Iterator[RawDocument]:
    if ending == ".parquet":
        rows = parquet_rows(stream, skipped)
    else:
        rows = jsonl_rows(decompressed(stream, path), size, skipped)
    for number, row in rows:
        document = row_document(f"{path}#{number}", row, licence, day, skipped)
        if document is not None:
            yield document


def _content(stream: BinaryIO, size: int, path: str, media: str, skipped: Skipped) -> bytes | None:
    """Content of a file that is one document; None, and a count, where it can't be used."""
    content = b""
    if size <= MAX_FILE_BYTES:
        try:
            content = decompressed(stream, path).read(MAX_FILE_BYTES + 1)
        except DAMAGED:
            skipped["unreadable"] += 1
            return None
    if max(size, len(content)) > MAX_FILE_BYTES:
        skipped[LARGER] += 1
    elif not content:
        skipped["empty"] += 1
    elif not is_text(content, media):
        skipped["not text"] += 1
    else:
        return content
    return None


def read_file(path: Path, media: str, skipped: Skipped) -> tuple[bytes, date] | None:
    """Content of one local file and the day it was last changed; None, and a count, where it can't be used."""
    try:
        with open_file(Place(path.parent), path.name) as (stream, size, day):
            content = _content(stream, size, "", media, skipped)
    except OSError:
        skipped["unreadable"] += 1
        return None
    return None if content is None else (content, day)


def render_table(name: str, content: bytes, max_rows: int) -> bytes:
    """A table as a document: its name, then its header and first `max_rows` rows as the CSV they were written in.

    Empty where it isn't a table: fewer than two rows or columns, or not text.
    """
    try:
        text, _ = decode(content, "csv")
    except UnicodeError:
        return b""
    lines = text.splitlines()[: max_rows * 20]  # quoted cells may hold line breaks
    reader = csv.reader(lines)
    rows, columns, end = 0, 0, 0
    try:
        for row in reader:
            rows, columns, end = rows + 1, max(columns, len(row)), reader.line_num
            if rows > max_rows:
                break
    except csv.Error:
        return b""
    return "\n".join([name, *lines[:end], ""]).encode() if rows > 1 and columns > 1 else b""


def render_notebook(content: bytes) -> bytes:
    """The cells of a Jupyter notebook, prose and code as they were written, without outputs; empty where it is none."""
    try:
        notebook = json.loads(decode(content, "text")[0])
    except (ValueError, RecursionError):
        return b""
    found = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(found, list):
        return b""
    texts = []
    for cell in found[:MAX_CELLS]:
        if isinstance(cell, dict) and cell.get("cell_type") in ("markdown", "code"):
            text = _lines(cell.get("source")).strip("\n")
            texts += [text] if text.strip() else []
    return "\n\n".join([*texts, ""]).encode("utf-8", "replace").rstrip(b"\n") + b"\n" if texts else b""


def _lines(source: Any) -> str:
    """A cell's text: a string, or a list of lines that keep their ends."""
    if isinstance(source, list):
        return "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""
