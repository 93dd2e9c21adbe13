"""Reading a folder of the user's own files, and what every reader shares.

A reader yields documents and counts what it had to leave out, by reason. Files are skipped one by one: a bad file
never stops the rest, and the counts end up in `sources.json`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from herd.artifact import CURRENT
from herd.data.documents import RawDocument
from herd.data.extract import decode, is_text
from herd.evidence import LEDGER
from herd.recipe_data import Folder

MAX_FILE_BYTES = 20_000_000  # ours: a single document beyond this is data, not text to learn from
MAX_LICENCE_CHARACTERS = 100
MAX_TABLE_ROWS = 40  # as [[data.source]] kind "tables" does by default

Skipped = Counter[str]  # reason -> files, rows or members left out

# Ending -> (kind, media). Containers of rows are read by `_rows_of` instead.
ENDINGS = {
    ".txt": ("prose", "text"),
    ".md": ("docs", "markdown"),
    ".rst": ("docs", "rst"),
    ".html": ("docs", "html"),
    ".htm": ("docs", "html"),
    ".py": ("code", "python"),
    ".csv": ("table", "csv"),
}
CONTAINERS = (".jsonl", ".parquet")


class Unavailable(Exception):
    """A source cannot be had here and now; the text says why. The stage decides whether that is an error."""


def walk_files(root: Path, skipped: Skipped) -> Iterator[tuple[Path, str]]:
    """Regular files under a folder with their paths inside it, in sorted order.

    Symbolic links are never followed (they could lead out of the folder) but counted; hidden files and bytecode
    folders are passed over silently. A run of herd inside the folder is not read: it would feed on itself.
    """
    for folder, folders, names in os.walk(root, onerror=lambda _: skipped.update(["unreadable folder"])):
        skipped["symbolic link"] += sum((Path(folder) / name).is_symlink() for name in [*folders, *names])
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name != "__pycache__" and _is_utf8(name)
        )
        if CURRENT in names and LEDGER in names:
            skipped["a run of herd"] += 1
            folders.clear()
            continue
        for name in sorted(names):
            path = Path(folder) / name
            if not _is_utf8(name):
                skipped["file name not UTF-8"] += 1
                continue
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path, path.relative_to(root).as_posix()


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_file(path: Path, media: str, skipped: Skipped) -> tuple[bytes, date] | None:
    """Content of one file and the day it was last changed; None, and a count, where it can't be used."""
    try:
        facts = path.stat()
        if facts.st_size > MAX_FILE_BYTES:
            skipped[f"larger than {MAX_FILE_BYTES // 1_000_000} MB"] += 1
            return None
        content = path.read_bytes()
    except OSError:
        skipped["unreadable"] += 1
        return None
    if not content:
        skipped["empty"] += 1
        return None
    if not is_text(content, media):
        skipped["not text"] += 1
        return None
    return content, datetime.fromtimestamp(facts.st_mtime, UTC).date()


def read_folder(source: Folder, base: Path, skipped: Skipped) -> Iterator[RawDocument]:
    """Documents of a folder; `base` is the folder of the recipe file.

    A row of a jsonl or Parquet file is a document: its column `text`, or `content`. Raises Unavailable where the
    folder isn't there.
    """
    root = base / source.path
    if not root.is_dir():
        raise Unavailable(f"no folder {root}")
    for path, inside in walk_files(root, skipped):
        ending = path.suffix.lower()
        if ending in CONTAINERS:
            yield from _rows_of(path, inside, source.licence, skipped)
        elif ending in ENDINGS:
            kind, media = ENDINGS[ending]
            found = read_file(path, media, skipped)
            if found is None:
                continue
            content, changed = found
            if kind == "table":
                content = render_table(path.stem, content, MAX_TABLE_ROWS)
            if not content:
                skipped["not a table"] += 1
                continue
            yield RawDocument(inside, kind, media, source.licence, changed, content)
        else:
            skipped["other kind of file"] += 1


def _rows_of(path: Path, inside: str, licence: str, skipped: Skipped) -> Iterator[RawDocument]:
    rows = _jsonl_rows(path, skipped) if path.suffix.lower() == ".jsonl" else _parquet_rows(path, skipped)
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).date()
    for number, row in rows:
        text = row.get("text", row.get("content"))
        content = text if isinstance(text, bytes) else text.encode("utf-8", "replace") if isinstance(text, str) else b""
        if not content.strip():
            skipped["row without text"] += 1
        elif len(content) > MAX_FILE_BYTES or not is_text(content, "text"):
            skipped["row too large or not text"] += 1
        else:
            own = next((row[name] for name in ("licence", "license") if isinstance(row.get(name), str)), licence)
            own = own.encode("utf-8", "replace").decode()[:MAX_LICENCE_CHARACTERS]
            yield RawDocument(f"{inside}#{number}", "prose", "text", own, changed, content)


def _jsonl_rows(path: Path, skipped: Skipped) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows (from 1, as editors count lines); a line that isn't a JSON object is counted, not fatal."""
    limit = 2 * MAX_FILE_BYTES  # JSON escapes can double a text
    try:
        with path.open("rb") as stream:
            number = 0
            while line := stream.readline(limit):
                number += 1
                if len(line) == limit and not line.endswith(b"\n"):
                    skipped["row too large or not text"] += 1
                    while (rest := stream.readline(limit)) and not rest.endswith(b"\n"):
                        pass
                    continue
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield number, row
                else:
                    skipped["malformed line"] += 1
    except OSError:
        skipped["unreadable"] += 1


def _parquet_rows(path: Path, skipped: Skipped) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with pq.ParquetFile(path) as file:
            names = [n for n in ("text", "content", "licence", "license") if n in file.schema_arrow.names]
            if "text" not in names and "content" not in names:
                skipped["Parquet file without a column 'text' or 'content'"] += 1
                return
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError):
        skipped["unreadable"] += 1


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


def listing(root: Path) -> dict[str, Any]:
    """Facts that change when a folder's files change: their number, bytes, and a digest of names, sizes and times."""
    if not root.is_dir():
        return {"missing": True}
    digest = hashlib.sha256()
    files = total = 0
    for path, inside in walk_files(root, Skipped()):
        facts = path.stat()
        digest.update(f"{inside}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        files, total = files + 1, total + facts.st_size
    return {"files": files, "bytes": total, "listing": digest.hexdigest()}
