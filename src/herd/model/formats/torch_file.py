"""Reading what torch.save wrote: a zip file of stored records, one of them a pickle that says what the others are.

Pickles are programs. `torch.load(weights_only=True)` runs a few functions of them, which is enough for a file of 60
bytes to take 2 GB, and takes a record for longer than it is. Weights need few operations and no function: these are
followed here, nothing is imported or called, and whatever else a pickle asks for is refused by name. `torch_write.py`
writes such files.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
import zlib
from collections.abc import Mapping
from io import SEEK_END, BufferedReader, FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from herd.console import HerdError
from herd.model.formats.numbers import plain
from herd.model.formats.weights import Stored, Weights, require_file

MAX_PICKLE_BYTES = 2_000_000  # 250 bytes a tensor; 405B has 1,137 of them
MAX_DIRECTORY_BYTES = 10_000_000  # of the zip: 100 a record
MAX_DIMENSIONS = 8
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
}
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
TABLE = "collections.OrderedDict"
PLAIN = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
GIVEN = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1")


class _Damage(Exception):
    """What is wrong with a file."""


class _Record(NamedTuple):
    start: int
    size: int
    crc: int


class _Global(NamedTuple):
    name: str


class Storage(NamedTuple):
    """What lies in record `data/KEY`: `numbers` of a dtype."""

    dtype: torch.dtype
    key: str
    numbers: int


class View(NamedTuple):
    """A tensor, as a place in a storage; offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def open_torch_file(path: Path) -> Weights:
    """The tensors of a file that holds a table of them; each is mapped and checked against its CRC when asked for.

    Raises HerdError where the file is missing, damaged, from before torch 1.6, or more than tensors.
    """
    require_file(path)
    try:
        with _Pieces(FileIO(path)) as stream:
            root, records = _records(stream)
            table = _followed(_small(stream, records, f"{root}data.pkl", MAX_PICKLE_BYTES))
            if f"{root}byteorder" in records and _small(stream, records, f"{root}byteorder", 16) != b"little":
                raise _Damage("its numbers are not little-endian")
        if not isinstance(table, dict):
            raise _Damage("it holds no table of tensors")
        size = path.stat().st_size
        mapped: Any = torch.UntypedStorage.from_file(str(path), False, size)
        return Weights({name: _stored(path, name, view, records, root, mapped) for name, view in table.items()})
    except _Damage as damage:
        raise HerdError(f"{path}: not a file of weights that torch saved: {plain(str(damage))}") from None


class _Pieces(BufferedReader):
    """A file of which zipfile gets no more than a directory's worth at once, whatever length a file claims it has."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise _Damage(f"its zip directory has {size:,} bytes; at most {MAX_DIRECTORY_BYTES:,} are read")
        return super().read(size)


def _records(stream: BinaryIO) -> tuple[str, dict[str, _Record]]:
    """The folder that all records are in, and where each lies."""
    end = stream.seek(0, SEEK_END)
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OverflowError, ValueError, OSError, struct.error) as error:
        raise _Damage(f"no zip archive, as torch writes since 1.6 ({error})") from None
    found: dict[str, _Record] = {}
    for entry in entries:
        if entry.filename in found:
            raise _Damage(f"record {entry.filename} is there twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise _Damage(f"record {entry.filename} is compressed or encrypted, which torch never does")
        stream.seek(max(0, entry.header_offset))
        header = stream.read(30)
        if entry.header_offset < 0 or len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise _Damage(f"record {entry.filename} is not where the directory says")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if start + entry.file_size > end:
            raise _Damage(f"record {entry.filename} ends at byte {start + entry.file_size} of {end}")
        found[entry.filename] = _Record(start, entry.file_size, entry.CRC)
    roots = [name.removesuffix("data.pkl") for name in found if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise _Damage(f"{len(roots)} records data.pkl; expected one")
    return roots[0], found


def _small(stream: BinaryIO, records: Mapping[str, _Record], name: str, most: int) -> bytes:
    record = records[name]
    if record.size > most:
        raise _Damage(f"record {name} has {record.size:,} bytes; at most {most:,} are read")
    stream.seek(record.start)
    data = stream.read(record.size)
    if zlib.crc32(data) != record.crc:
        raise _Damage(f"the bytes of record {name} are not what its CRC says")
    return data


def _followed(program: bytes) -> Any:
    """What a pickle makes: tables, tuples, numbers, texts, and views of storages; by following its operations."""
    try:
        return _follow(program)
    except (IndexError, KeyError, ValueError) as error:
        raise _Damage(f"its pickle is damaged ({type(error).__name__})") from None


def _follow(program: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def taken(count: int) -> list[Any]:
        if not 0 <= count <= len(stack):
            raise IndexError
        at = len(stack) - count
        items = stack[at:]
        del stack[at:]
        return items

    given: Any
    for operation, given, _ in pickletools.genops(program):
        match operation.name:
            case name if name in PLAIN:
                stack.append(PLAIN[name])
            case name if name in GIVEN:
                stack.append(given)
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(taken(len(stack) - marks.pop())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple(taken(int(name[-1]))))
            case "BINPUT" | "LONG_BINPUT":
                memo[given] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[given])
            case "GLOBAL":
                stack.append(_Global(given.replace(" ", ".")))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments))
            case "BUILD":
                stack.pop()  # attributes of a state dict: versions of its modules
            case "SETITEM":
                _set(taken(2), stack[-1])
            case "SETITEMS":
                _set(taken(len(stack) - marks.pop()), stack[-1])
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case name:
                raise _Damage(f"its pickle has the operation {name}, which weights do not need")
    raise _Damage("its pickle has no end")


def _set(items: list[Any], table: Any) -> None:
    """Only texts are keys: a tuple of tuples of tuples can take longer than the universe has to be hashed."""
    keys, values = items[::2], items[1::2]
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in keys):
        raise _Damage("it holds another table than one of names")
    table.update(zip(keys, values, strict=True))


def _storage(given: Any) -> Storage:
    match given:
        case ("storage", _Global(kind), str(key), str(_), int(count)) if count >= 0:
            if kind not in STORAGES:
                raise _Damage(f"it holds a {kind}; herd reads {', '.join(STORAGES)}")
            return Storage(STORAGES[kind], key, count)
    raise _Damage("it refers to something that is no storage")


def _made(function: Any, arguments: Any) -> Any:
    name = function.name if isinstance(function, _Global) else "something that has no name"
    if name == TABLE and arguments == ():
        return {}
    match arguments:
        case (View() as view, *_) if name == PARAMETER:
            return view
        case (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) if name == TENSOR:
            return View(storage, offset, shape, strides)
    raise _Damage(f"its pickle calls {name}; herd reads tensors and runs nothing")


def _stored(path: Path, name: str, view: Any, records: Mapping[str, _Record], root: str, mapped: Any) -> Stored:
    """A tensor to be read. Raises _Damage where it is none, or reaches out of its record."""
    if not isinstance(view, View):
        raise _Damage(f"{name} is no tensor")
    dtype, key, count = view.storage
    record = records.get(f"{root}data/{key}")
    if record is None:
        raise _Damage(f"{name} is in record data/{key}, which is missing")
    if count * dtype.itemsize > record.size:
        raise _Damage(f"{name} needs {count * dtype.itemsize:,} bytes, record data/{key} has {record.size:,}")
    if not _inside(view):
        raise _Damage(f"the shape and strides of {name} do not fit the {count:,} numbers of record data/{key}")

    def read() -> Tensor:
        part = mapped[record.start : record.start + record.size]
        if zlib.crc32(torch.empty(0, dtype=torch.uint8).set_(part).numpy().data) != record.crc:  # type: ignore[arg-type]
            raise HerdError(f"{path}: {name} is damaged: the bytes of record data/{key} are not what its CRC says")
        return torch.empty(0, dtype=dtype).set_(part, view.offset, view.shape, view.strides)  # type: ignore[arg-type]

    return Stored(view.shape, dtype, read)


def _inside(view: View) -> bool:
    """Whether every number of a view is in its storage, and is there once: so that none is larger than the file."""
    numbers = (view.offset, *view.shape, *view.strides)
    if len(view.shape) != len(view.strides) or len(view.shape) > MAX_DIMENSIONS:
        return False
    if not all(type(number) is int for number in numbers) or min(numbers) < 0 or 0 in view.shape:
        return False
    reached = 1  # numbers that the dimensions so far span
    for stride, size in sorted((stride, size) for stride, size in zip(view.strides, view.shape, strict=True)):
        if size > 1:
            if stride < reached:
                return False
            reached = stride * (size - 1) + reached
    return view.offset + reached <= view.storage.numbers
