"""Weights on disk: safetensors files read tensor by tensor and written tensor by tensor, and what a model file holds.

Converting a model must not need the memory for it twice, or once: a tensor is made when it is asked for and forgotten
when it is written, so the largest one decides.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.model.formats.numbers import plain
from herd.model.tokenizer import Tokenizer

MAX_JSON_BYTES = 64_000_000  # the largest is the index of a model with 100,000 tensors, 10 MB
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
}
OF_NAME = {name: dtype for dtype, name in DTYPES.items()}


class Stored(NamedTuple):
    """A tensor that is not here yet: `read` makes it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def then(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> Stored:
        """The tensor after a change that keeps its shape."""
        return Stored(self.shape, dtype or self.dtype, lambda: change(self.read()))


class Weights(Mapping[str, Tensor]):
    """Tensors by name, each made anew whenever it is asked for; shapes and dtypes are known without that."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.stored = dict(stored)

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:  # the inherited one would read the tensor
        return name in self.stored


class OpenModel(NamedTuple):
    """What a model's files hold. `facts`: name, licence, and how many tensors of which kind."""

    config: ModelConfig
    state: Mapping[str, Tensor]
    tokenizer: Tokenizer
    facts: dict[str, Any]


def stored(tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Shape, dtype and reader of each tensor, whether they are here or not."""
    if isinstance(tensors, Weights):
        return tensors.stored
    return {name: Stored(tuple(value.shape), value.dtype, lambda value=value: value) for name, value in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file that transformers reads too, one tensor after the other; rounded to `dtype` if given.

    Raises OSError (ENOSPC) where the disk is full.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    entries, at = stored(tensors), 0
    for name, one in entries.items():
        size = math.prod(one.shape) * (dtype or one.dtype).itemsize
        header[name] = {"dtype": DTYPES[dtype or one.dtype], "shape": list(one.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.unlink(missing_ok=True)  # cut short, a file that is mapped ends whoever reads it
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for one in entries.values():
            stream.write(tensor_bytes(one.read().detach().to(dtype or one.dtype)))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises HerdError where it is missing or damaged."""
    require_file(path)
    with explained(path):
        return load_file(path)


def open_tensors(path: Path) -> Weights:
    """The tensors of a safetensors file, to be read one by one. Raises HerdError where it is missing or damaged."""
    require_file(path)
    with explained(path):
        file = safe_open(path, "pt")
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        kinds = {name: part.get_dtype() for name, part in parts.items()}
        if unknown := sorted(set(kinds.values()) - OF_NAME.keys()):
            raise HerdError(f"{path}: holds tensors of type {plain(unknown[0])}; herd reads {', '.join(OF_NAME)}")
        return Weights(
            {
                name: Stored(tuple(part.get_shape()), OF_NAME[kinds[name]], lambda name=name: file.get_tensor(name))
                for name, part in parts.items()
            }
        )


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What safetensors says of a file becomes one line."""
    try:
        yield
    except SafetensorError as error:
        raise HerdError(f"{path}: not a whole safetensors file ({plain(str(error))})") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises HerdError where the file is missing, huge, or holds anything else."""
    require_file(path)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise HerdError(f"{path}: over {MAX_JSON_BYTES:,} bytes, which is not read as JSON")
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise HerdError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise HerdError(f"{path}: a JSON object is expected, not {type(value).__name__}")
    return value


def require_file(path: Path) -> None:
    """Raise HerdError where there is no file, or something that is none: opening a pipe would wait for its writer."""
    shown = plain(str(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise HerdError(f"{shown}: not a file")
    except FileNotFoundError:
        raise HerdError(f"{shown}: missing") from None
    except OSError as error:  # a loop of links, a name too long
        raise HerdError(f"{shown}: can't be opened ({error.strerror})") from None
    except ValueError as error:  # a name that is none
        raise HerdError(f"{shown}: can't be opened ({error})") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as people read it."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
