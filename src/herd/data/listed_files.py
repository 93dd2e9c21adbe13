"""Lists that a recipe names (domains, words): files of the user's, or files inside packages, read where they lie.

A package's archive is downloaded without what it depends on, nothing of it is run or unpacked, and its members are
read as bounded streams.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from herd.artifact import file_sha256
from herd.console import HerdError
from herd.data.archives import DAMAGED, Budget, bounded, members
from herd.data.cache import folder
from herd.data.files import Unavailable
from herd.data.packages import check_digest, fetch_npm, fetch_package

MAX_BYTES = 1_000_000_000  # of all that is read of one archive; datatrove 0.10's list of domains has 124 MB
MAX_UNPACKED_BYTES = 2_000_000_000  # with a tar archive's other members, which are decompressed to be passed over

_ARCHIVES = (".zip", ".whl", ".tar", ".tar.gz", ".tgz")
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
    """The files that `spec` names, a folder's by name; each stream is good until the next is asked for.

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
    except DAMAGED as error:
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
    try:
        if package := _PACKAGE.fullmatch(spec):
            requirement, inside, digest = package.groups()
            archive = fetch_package(requirement, digest, folder("packages"))
            check_digest(archive, digest)
            return _Located(spec, archive, inside.strip("/"))
        if package := _NPM.fullmatch(spec):
            name, version, inside, digest = package.groups()
            archive = fetch_npm(name, version, folder("npm"))
            check_digest(archive, digest)
            return _Located(spec, archive, inside.strip("/"))
    except Unavailable as error:
        raise HerdError(f"list '{spec}': {error}") from None
    if spec.startswith(("package:", "npm:")):
        raise HerdError(f"list '{spec}': expected {_EXPECTED}")
    path = base / spec
    if not path.exists():
        raise HerdError(f"list '{spec}': there is no file {path}; expected {_EXPECTED}")
    return _Located(spec, path, "" if path.is_file() and path.name.endswith(_ARCHIVES) else None)


def _open(located: _Located) -> Iterator[Listed]:
    spec, path, inside = located
    if inside is not None:
        with path.open("rb") as file:
            yield from _members(spec, path.name, file, inside, _budget(spec, MAX_BYTES))
        return
    for one in _files_of(path) if path.is_dir() else [path]:
        with gzip.open(one) if one.suffix == ".gz" else one.open("rb") as stream:
            yield Listed(one.name, bounded(stream, _budget(spec, MAX_BYTES)), not path.is_dir())


def _budget(spec: str, max_bytes: int) -> Budget:
    """A limit whose error names the list, wherever in the reading it comes."""
    return Budget(max_bytes, error=lambda why: HerdError(f"list '{spec}': {why}; not read further"))


def _files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))


def _members(spec: str, name: str, file: IO[bytes], inside: str, read: Budget) -> Iterator[Listed]:
    """Files at the path `inside` of an archive, or below it; "" means all. An archive on the way is gone into."""
    for label, _, member in members(name, file, _budget(spec, MAX_UNPACKED_BYTES)):
        path, stream = label.removeprefix("./"), bounded(member, read)
        deeper = inside.removeprefix(path).lstrip("/") if path.endswith(_ARCHIVES) and _within(inside, path) else None
        if deeper is not None:  # held in memory: a zip's directory is at its end
            yield from _members(spec, path, io.BytesIO(stream.read()), deeper, read)
        elif _within(path, inside):
            yield Listed(path, stream, path == inside)


def _within(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(folder + "/")
