"""Where checkpoints lie: a local folder, or one that fsspec reaches (s3://, gs://, memory://).

Both hold a folder a checkpoint and write a file once, piece by piece, hashed on the way. Local files are flushed to
disk in a draft folder that is renamed when it is whole. An object store has no rename, so a draft has its final name
from the start, and only the marker written last says that it is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from herd.artifact import write_atomically
from herd.console import HerdError, one_line

MARKER = "COMPLETE"
PIECE_BYTES = 16_000_000
DRAFT = ".draft-"
ASIDE = ".damaged-"

Bytes = bytes | memoryview


class Written(NamedTuple):
    """What went into a file."""

    bytes: int
    sha256: str


class LocalFolder:
    """A folder of this machine, or of a file system that every process mounts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def draft(self, name: str) -> str:
        """Name of the folder in which a checkpoint is written."""
        return DRAFT + name

    def names(self) -> list[str]:
        """Names of all that lies here, hidden ones too; empty where there is no folder."""
        try:
            return [path.name for path in self.root.iterdir()]
        except FileNotFoundError:
            return []

    def begin(self, name: str) -> None:
        """Make an empty folder."""
        self.remove(name)
        (self.root / name).mkdir(parents=True)

    def write(self, name: str, pieces: Iterable[Bytes]) -> Written:
        """Write a file and flush it to disk. Raises OSError (ENOSPC) where the disk is full."""
        with (self.root / name).open("wb") as stream:
            written = _write(stream, pieces)
            stream.flush()
            os.fsync(stream.fileno())
        return written

    def read(self, name: str) -> bytes:
        """A whole small file. Raises FileNotFoundError, or OSError."""
        return (self.root / name).read_bytes()

    def size(self, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        return (self.root / name).stat().st_size

    @contextmanager
    def checked(self, names: Iterable[str]) -> Iterator[dict[str, tuple[Path, Written]]]:
        """Paths to read files at, and what they hold now. Raises FileNotFoundError, or OSError."""
        yield {name: (self.root / name, _digest(self.root / name)) for name in names}

    def publish(self, name: str) -> None:
        """Give a draft its final name; what had that name before goes."""
        draft, final = self.root / self.draft(name), self.root / name
        _flush(draft)
        if final.exists():
            self.remove(name)
        draft.rename(final)
        _flush(self.root)

    def mark(self, name: str, text: str) -> None:
        """Write a small file, whole or not at all."""
        write_atomically(self.root / name, text)
        _flush((self.root / name).parent)

    def remove(self, name: str) -> None:
        """Delete a folder or file, so that no moment shows a part of it under its name."""
        path = self.root / name
        if path.is_dir():
            if not name.startswith("."):
                hidden = self.root / f"{DRAFT}deleted-{name}"
                shutil.rmtree(hidden, ignore_errors=True)
                path = path.rename(hidden)
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def set_aside(self, name: str) -> None:
        """Take a damaged checkpoint out of the count; it is deleted when a later save is whole."""
        self.remove(ASIDE + name)
        (self.root / name).rename(self.root / (ASIDE + name))


class RemoteFolder:
    """A folder of an object store. What its client raises becomes OSError, which other processes can be sent."""

    def __init__(self, system: Any, root: str) -> None:
        self.system, self.root = system, root.rstrip("/")

    def __str__(self) -> str:
        return self.system.unstrip_protocol(self.root)

    def draft(self, name: str) -> str:
        """The final name: there is no rename."""
        return name

    def names(self) -> list[str]:
        """Names of all that lies here; empty where there is no folder."""
        with _plain_errors():
            self.system.invalidate_cache()
            try:
                return [path.rstrip("/").rpartition("/")[2] for path in self.system.ls(self.root, detail=False)]
            except FileNotFoundError:
                return []

    def begin(self, name: str) -> None:
        """Make an empty folder."""
        self.remove(name)
        with _plain_errors():
            self.system.makedirs(self._path(name), exist_ok=True)

    def write(self, name: str, pieces: Iterable[Bytes]) -> Written:
        """Write a file."""
        with _plain_errors(), self.system.open(self._path(name), "wb") as stream:
            return _write(stream, pieces)

    def read(self, name: str) -> bytes:
        """A whole small file. Raises FileNotFoundError, or OSError."""
        with _plain_errors():
            return self.system.cat_file(self._path(name))

    def size(self, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        with _plain_errors():
            self.system.invalidate_cache()
            return self.system.size(self._path(name))

    @contextmanager
    def checked(self, names: Iterable[str]) -> Iterator[dict[str, tuple[Path, Written]]]:
        """Local copies of files, for the length of a `with` block, and what they hold."""
        with tempfile.TemporaryDirectory(prefix="herd-checkpoint-") as folder:
            copies = {}
            for number, name in enumerate(names):
                copy = Path(folder) / str(number)
                with _plain_errors():
                    self.system.get_file(self._path(name), str(copy))
                copies[name] = (copy, _digest(copy))
            yield copies

    def publish(self, name: str) -> None:
        """Nothing: the marker decides."""

    def mark(self, name: str, text: str) -> None:
        """Write a small file."""
        self.write(name, [text.encode()])

    def remove(self, name: str) -> None:
        """Delete a folder or file; of a checkpoint the marker first, so that the rest never counts."""
        with _plain_errors():
            self.system.invalidate_cache()
            if self.system.exists(marker := self._path(f"{name}/{MARKER}")):
                self.system.rm(marker)
            if self.system.exists(self._path(name)):
                self.system.rm(self._path(name), recursive=True)

    def set_aside(self, name: str) -> None:
        """Delete a damaged checkpoint: to rename would be to copy it."""
        self.remove(name)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


Folder = LocalFolder | RemoteFolder


def open_folder(address: str | Path) -> Folder:
    """The folder at a path or address; it need not exist yet.

    Raises HerdError where no installed file system of fsspec knows the address.
    """
    text = str(address)
    protocol = text.partition("://")[0] if "://" in text else ""
    if protocol in ("", "file", "local"):
        return LocalFolder(Path(unquote(urlsplit(text).path)) if protocol else Path(address))
    import fsspec  # a second of imports that local folders never need

    try:
        system, root = fsspec.core.url_to_fs(text)
    except Exception as error:  # a missing package, an address without a bucket: each client has errors of its own
        raise HerdError(f"{text}: checkpoints can't be kept there ({one_line(error)})") from None
    return RemoteFolder(system, root)


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(one_line(error)) from None


def _write(stream: Any, pieces: Iterable[Bytes]) -> Written:
    digest, count = hashlib.sha256(), 0
    for whole in pieces:
        for start in range(0, len(whole), PIECE_BYTES):
            piece = whole[start : start + PIECE_BYTES]
            digest.update(piece)
            stream.write(piece)
            count += len(piece)
    return Written(count, digest.hexdigest())


def _digest(path: Path) -> Written:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return Written(stream.tell(), digest)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
