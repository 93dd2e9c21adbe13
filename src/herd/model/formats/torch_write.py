"""Writing what torch.save writes, record for record, but one tensor after the other: none has to be here beforehand.

torch maps such a file (`torch.load(mmap=True)`), and any unzip finds its CRCs right. Its zip layout is miniz's as torch
uses it: sizes after the data, padding in the extra field "FB", 64-bit fields where 32 bits do not hold a number.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from herd.model.formats.torch_file import STORAGES, Storage, View
from herd.model.formats.weights import tensor_bytes

ALIGNMENT = 64  # of a record in the file, so that it can be used where it is mapped
BEYOND_32_BITS = 0xFFFFFFFF


class TorchFile:
    """A file to be written as torch.save writes a table of tensors of one dtype, one tensor after the other.

    `shapes` says what will be added and in which order; `also` gives tensors a second name. Leaving the context writes
    the directory, without which nothing reads the file. Raises OSError (ENOSPC) where the disk is full.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, also: Mapping[str, str]
    ) -> None:
        self.stream, self.root = path.open("wb"), path.stem
        self.at = self.added = self.tensors = 0
        self.directory = bytearray()
        self._add("data.pkl", _pickle(shapes, dtype, also))
        self._add(".format_version", b"1")
        self._add(".storage_alignment", str(ALIGNMENT).encode())
        self._add("byteorder", b"little")

    def add(self, tensor: Tensor) -> None:
        """Write the next tensor."""
        self._add(f"data/{self.tensors}", tensor_bytes(tensor))
        self.tensors += 1

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self.stream:
            if kind is None:
                self._add("version", b"3\n")
                self._end()

    def _add(self, name: str, data: bytes | memoryview) -> None:
        """A record as miniz writes it for torch: sizes after the data, padding before it."""
        path, size, crc = f"{self.root}/{name}".encode(), len(data), zlib.crc32(data)
        large, far = size >= BEYOND_32_BITS, [self.at] * (self.at >= BEYOND_32_BITS)
        first, wide = _wide([size, 0] * large + far), _wide([size, size] * large + far)
        padding = -(self.at + 30 + len(path) + len(first) + 4) % ALIGNMENT
        extra = first + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, 0x808, 0, 0, 0, 0, 0, 0, len(path), len(extra))
        sizes = struct.pack("<4sI2Q" if wide else "<4s3I", b"PK\x07\x08", crc, size, size)
        kept, place = min(size, BEYOND_32_BITS), min(self.at, BEYOND_32_BITS)
        fixed = struct.pack("<4s6H3I3H", b"PK\x01\x02", 0, 0, 0x808, 0, 0, 0, crc, kept, kept, len(path), len(wide), 0)
        self.directory += fixed + struct.pack("<2H2I", 0, 0, 0, place) + path + wide
        self.added += 1
        for part in (local, path, extra, data, sizes):
            self.stream.write(part)
            self.at += len(part)

    def _end(self) -> None:
        start, size, count = self.at, len(self.directory), self.added
        wide = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 0x31E, 45, 0, 0, count, count, size, start)
        where = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
        short, place = min(count, 0xFFFF), min(start, BEYOND_32_BITS)
        last = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, short, short, size, place, 0)
        self.stream.write(self.directory + wide + where + last)


def _wide(numbers: list[int]) -> bytes:
    """The extra field of numbers that 32 bits do not hold; nothing where there are none."""
    return struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""


def _pickle(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, also: Mapping[str, str]) -> bytes:
    kind = next(name for name, one in STORAGES.items() if one == dtype).removeprefix("torch.")
    views: dict[str, View] = {}
    for key, (name, shape) in enumerate(shapes.items()):
        strides = torch.empty(shape, device="meta").stride()
        views[name] = View(Storage(dtype, str(key), math.prod(shape)), 0, tuple(shape), strides)
    stream = io.BytesIO()
    _Pickler(stream, getattr(torch, kind)).dump(views | {name: views[other] for name, other in also.items()})
    return stream.getvalue()


class _Pickler(pickle.Pickler):
    """Writes views as torch.save writes the tensors they stand for."""

    def __init__(self, stream: BinaryIO, storage_type: type) -> None:
        super().__init__(stream, protocol=2)
        self.storage_type = storage_type

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Storage):
            return ("storage", self.storage_type, obj.key, "cpu", obj.numbers)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, View):
            return _rebuild_tensor_v2, (obj.storage, obj.offset, obj.shape, obj.strides, False, OrderedDict())
        return NotImplemented
