"""Where a folder source's files are: a local folder, or one that fsspec reaches (s3://, gs://, memory://).

What every reader shares is here too: counts of what was left out, bounds, and decompression. A path inside a folder
is always written with `/`, so that a corpus has the same names wherever it lies.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from herd.artifact import CURRENT
from herd.console import one_line
from herd.evidence import LEDGER

MAX_FILE_BYTES = 20_000_000  # ours: a single document beyond this is data, not text to learn from
MAX_RATIO = 200  # decoded to compressed bytes; text stays below 50, deflate can reach 1,032: beyond this it is a bomb
LARGER = f"larger than {MAX_FILE_BYTES // 1_000_000} MB"  # a reason of Skipped

# What reading a file that is damaged, or compressed and damaged, raises.
DAMAGED = (OSError, EOFError, zlib.error, pa.ArrowException)

Skipped = Counter[str]  # reason -> files, rows, records or members left out


class Unavailable(Exception):
    """A source cannot be had here and now; the text says why. The stage decides whether that is an error."""


class Place(NamedTuple):
    """A folder: `root` is local, or `prefix` is inside the file system `remote` of fsspec.

    Where `only` is a name, the source is that one file of the folder.
    """

    root: Path | None
    remote: Any = None
    prefix: str = ""
    only: str = ""


class File(NamedTuple):
    """One file of a folder. `mark` changes when its content does: a time of change or an ETag."""

    path: str
    size: int
    mark: str


def place(path: str, base: Path) -> Place:
    """Where `path` of a recipe in the folder `base` leads. Raises Unavailable where nothing is there.

    An address of an object store needs its package (s3fs, gcsfs): Unavailable names it.
    """
    protocol = path.partition("://")[0] if "://" in path else ""
    if protocol in ("", "file", "local"):
        root = Path(unquote(urlsplit(path).path)) if protocol else base / path
        if root.is_file():
            return Place(root.parent, only=root.name)
        if not root.is_dir():
            raise Unavailable(f"no folder {root}")
        return Place(root)
    return _remote(path, protocol)


def _remote(address: str, protocol: str) -> Place:
    import fsspec  # a second of imports that most corpora never need
    from fsspec.registry import known_implementations

    try:
        remote, prefix = fsspec.core.url_to_fs(address)
        if remote.isfile(prefix):
            folder, _, name = prefix.rpartition("/")
            return Place(None, remote, folder, name)
        if not remote.isdir(prefix):
            raise Unavailable(f"no folder {address}")
    except ImportError as error:
        package = known_implementations.get(protocol, {}).get("class", "fsspec").partition(".")[0]
        needs = one_line(error) if package == "fsspec" else f"needs the package {package}: pip install {package}"
        raise Unavailable(f"{address} {needs}") from None
    except Unavailable:
        raise
    except Exception as error:  # every store's client has errors of its own
        raise Unavailable(f"can't reach {address}: {one_line(error)}") from None
    return Place(None, remote, prefix.rstrip("/"))


def files(where: Place, skipped: Skipped) -> list[File]:
    """Files of a folder in the order of their paths, without hidden ones, links and runs of herd."""
    if where.root is None:
        return sorted(_remote_files(where, skipped))
    found = []
    walk = [(where.root / where.only, where.only)] if where.only else walk_files(where.root, skipped)
    for path, inside in walk:
        try:
            facts = path.stat()
        except OSError:
            skipped["unreadable"] += 1
            continue
        found.append(File(inside, facts.st_size, str(facts.st_mtime_ns)))
    return sorted(found)


def walk_files(root: Path, skipped: Skipped) -> Iterator[tuple[Path, str]]:
    """Regular files under a local folder with their paths inside it, a folder's own files first.

    Symbolic links are never followed (they could lead out of the folder) but counted; hidden files and bytecode
    folders are passed over silently. A run of herd inside the folder is not read: it would feed on itself.
    """
    for folder, folders, names in os.walk(root, onerror=lambda _: skipped.update(["unreadable folder"])):
        skipped["symbolic link"] += sum((Path(folder) / name).is_symlink() for name in [*folders, *names])
        folders[:] = sorted(name for name in folders if not _hidden(name) and _is_utf8(name))
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


def _remote_files(where: Place, skipped: Skipped) -> Iterator[File]:
    try:
        start = f"{where.prefix}/{where.only}".rstrip("/") if where.only else where.prefix
        found = where.remote.find(start, detail=True)
    except Exception as error:
        raise Unavailable(f"can't list {where.prefix}: {one_line(error)}") from None
    inside = {name.removeprefix(where.prefix).strip("/"): facts for name, facts in found.items()}
    folders = Counter(path.rpartition("/")[0] for path in inside if path.rpartition("/")[2] in (CURRENT, LEDGER))
    runs = [folder for folder, marks in folders.items() if marks == 2]
    skipped["a run of herd"] += len(runs)
    for path, facts in inside.items():
        if facts.get("islink") or facts.get("type") == "link":
            skipped["symbolic link"] += 1
        elif not _is_utf8(path):
            skipped["file name not UTF-8"] += 1
        elif not any(run == "" or path.startswith(run + "/") for run in runs) and not _hidden_path(path):
            mark = facts.get("ETag") or facts.get("etag") or facts.get("mtime") or facts.get("LastModified")
            yield File(path, int(facts.get("size") or 0), str(mark or facts.get("created") or ""))


def _hidden_path(path: str) -> bool:
    return not path or any(_hidden(part) for part in path.split("/"))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def open_file(where: Place, inside: str) -> Iterator[tuple[BinaryIO, int, date]]:
    """A file for reading (it can be sought), its size in bytes, and the day it was last changed. Raises OSError."""
    if where.root is not None:
        with (where.root / inside).open("rb") as stream:
            facts = os.fstat(stream.fileno())
            yield stream, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC).date()
        return
    name = f"{where.prefix}/{inside}"
    try:
        facts = where.remote.info(name)
        raw = _Remote(where.remote.open(name, "rb"))
    except Exception as error:
        raise OSError(one_line(error)) from None
    with io.BufferedReader(raw, 1 << 20) as stream:
        yield stream, int(facts.get("size") or 0), _day(facts)


class _Remote(io.RawIOBase):
    """A file of an object store whose errors, of whatever client, are OSError."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except Exception as error:
            raise OSError(one_line(error)) from None
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _day(facts: dict[str, Any]) -> date:
    """Day of the last change as stores tell it; today where they don't."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = facts.get(name)
        with contextlib.suppress(ValueError, OverflowError, OSError):
            if isinstance(value, datetime):
                return value.date()
            if isinstance(value, float | int):
                return datetime.fromtimestamp(value, UTC).date()
            if isinstance(value, str):
                return date.fromisoformat(value[:10])
    return datetime.now(UTC).date()


def decompressed(stream: BinaryIO, name: str) -> BinaryIO:
    """The bytes of a file whose name ends in .gz or .zst; others as they are. Reading may raise any of DAMAGED."""
    if name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    if name.lower().endswith(".zst"):
        return io.BufferedReader(cast(Any, pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")))
    return stream


def listing(path: str | Path, base: Path = Path()) -> dict[str, Any]:
    """Facts that change when a folder's files change: their number, bytes, and a digest of names, sizes and times."""
    try:
        found = files(place(str(path), base), Skipped())
    except Unavailable:
        return {"missing": True}
    digest = hashlib.sha256()
    for file in found:
        digest.update(f"{file.path}\0{file.size}\0{file.mark}\n".encode("utf-8", "surrogateescape"))
    return {"files": len(found), "bytes": sum(file.size for file in found), "listing": digest.hexdigest()}
