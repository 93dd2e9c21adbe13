"""The GGUF container, version 2 and 3, little-endian: keys with their values, and tensors (spec of ggml-org/ggml).

Files are hostile until shown otherwise: every count and length is checked against the bytes that are there before
anything is allocated. (PyPI gguf's reader loops over any count a file claims; of it the dequantizing is used.)
"""

from __future__ import annotations

import math
import mmap
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from herd.console import HerdError
from herd.model.formats.numbers import plain
from herd.model.formats.weights import require_file

MAX_KEYS = 10_000
MAX_TENSORS = 100_000
MAX_ELEMENTS = 5_000_000  # of a list of values; the largest are vocabularies and their merges
MAX_DIMENSIONS = 4
STRING, LIST, BOOL = 8, 9, 7
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}


class StoredTensor(NamedTuple):
    """A tensor as it lies in the file. `shape` has the outermost dimension first, `data` is (rows, bytes of a row)."""

    shape: tuple[int, ...]
    kind: str
    data: NDArray[np.uint8]

    def values(self) -> NDArray[np.float32]:
        """The numbers, dequantized. Raises NotImplementedError for kinds that hold none or that nobody decodes."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        values = dequantize(self.data, GGMLQuantizationType[self.kind])
        return np.array(values, dtype=np.float32).reshape(self.shape)


def read_gguf_file(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Keys and tensors; the file stays mapped while tensors are held. Raises HerdError saying where it is damaged."""
    require_file(path)
    try:
        with path.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise HerdError(f"{path}: not a GGUF file, it is empty") from None
    try:
        return _read(_Cursor(data))
    except _Damage as damage:
        raise HerdError(f"{path}: not a whole GGUF file: {plain(str(damage))}") from None


class _Damage(Exception):
    """What is wrong with a file."""


class _Cursor:
    """Reads values one after the other and never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def bytes(self, count: int, what: str) -> bytes:
        if count > len(self.data) - self.at:
            raise _Damage(f"{what} at byte {self.at} needs {count} bytes, {len(self.data) - self.at} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def unpack(self, kinds: str, what: str) -> tuple[Any, ...]:
        return struct.unpack("<" + kinds, self.bytes(struct.calcsize("<" + kinds), what))

    def count(self, what: str, most: int) -> int:
        (count,) = self.unpack("Q", what)
        if count > most:
            raise _Damage(f"{what} is {count}, at most {most} are read")
        return count

    def text(self, what: str) -> str:
        (length,) = self.unpack("Q", f"length of {what}")
        try:
            return self.bytes(length, what).decode()
        except UnicodeDecodeError:
            raise _Damage(f"{what} is not UTF-8") from None

    def value(self, kind: int, what: str) -> Any:
        if kind == STRING:
            return self.text(what)
        if kind in SCALARS:
            return self.unpack(SCALARS[kind], what)[0]
        if kind == LIST:
            (inner,) = self.unpack("I", f"kind of {what}")
            count = self.count(f"length of {what}", MAX_ELEMENTS)
            if inner == STRING:
                return [self.text(what) for _ in range(count)]
            if inner in SCALARS:
                return list(self.unpack(f"{count}{SCALARS[inner]}", what))
            raise _Damage(f"{what} is a list of kind {inner}, which is not read")
        raise _Damage(f"{what} has the unknown kind {kind}")


def _read(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    magic, version = cursor.bytes(4, "magic"), cursor.unpack("I", "version")[0]
    if magic != b"GGUF" or version not in (2, 3):
        raise _Damage(f"it begins with {magic!r} and version {version}; expected b'GGUF' and version 2 or 3")
    tensors, keys = cursor.count("number of tensors", MAX_TENSORS), cursor.count("number of keys", MAX_KEYS)
    fields: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text("name of a key")
        if key in fields:
            raise _Damage(f"key {key} is given twice")
        fields[key] = cursor.value(cursor.unpack("I", f"kind of {key}")[0], key)
    places = [_place(cursor) for _ in range(tensors)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Damage(f"general.alignment is {alignment!r}, not a power of two")
    start = -(-cursor.at // alignment) * alignment
    found: dict[str, StoredTensor] = {}
    ends: list[tuple[int, int, str]] = []
    for name, shape, kind, offset in places:
        if name in found:
            raise _Damage(f"tensor {name} is given twice")
        if offset % alignment:
            raise _Damage(f"tensor {name} begins at {offset}, not at a multiple of {alignment}")
        found[name] = _tensor(cursor, name, shape, kind, start + offset)
        ends.append((offset, offset + found[name].data.size, name))
    for (_, end, one), (begin, _, other) in pairwise(sorted(ends)):
        if begin < end:
            raise _Damage(f"tensors {one} and {other} share bytes")
    return fields, found


def _place(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, kind and offset of a tensor."""
    name = cursor.text("name of a tensor")
    (dimensions,) = cursor.unpack("I", f"dimensions of {name}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise _Damage(f"tensor {name} has {dimensions} dimensions")
    *inner_first, kind, offset = cursor.unpack(f"{dimensions}QIQ", f"tensor {name}")
    return name, tuple(reversed(inner_first)), kind, offset


def _tensor(cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int, start: int) -> StoredTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        known = GGMLQuantizationType(kind)
        values, size = GGML_QUANT_SIZES[known]
    except (ValueError, KeyError):
        raise _Damage(f"tensor {name} has the unknown kind {kind}") from None
    if shape[-1] % values or not all(shape):
        raise _Damage(f"tensor {name} of shape {list(shape)} does not divide into {known.name}'s blocks of {values}")
    rows, row = math.prod(shape[:-1]), shape[-1] // values * size
    if start + rows * row > len(cursor.data):
        raise _Damage(f"tensor {name} ends at byte {start + rows * row} of {len(cursor.data)}")
    data = np.frombuffer(cursor.data, np.uint8, rows * row, start).reshape(rows, row)
    return StoredTensor(shape, known.name, data)
