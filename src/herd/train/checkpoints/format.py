"""What lies in a checkpoint's folder, and how torch.distributed.checkpoint writes and reads it.

    rank-00000.safetensors ...   the chunks of tensors that each process wrote
    metadata.json                global shape, type and chunks of each tensor, the step, and what the loop adds
    manifest.json                size and SHA-256 of each of these files
    COMPLETE                     SHA-256 of the manifest, written last: without it the rest does not count

Torch's own storage loads a flipped bit silently and keeps its metadata as a pickle; here every file is checked before
a tensor is used, and nothing is ever unpickled. Any mesh reads what any other wrote: torch's planner cuts the chunks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from herd.artifact import canonical_json
from herd.console import HerdError
from herd.model.formats.weights import DTYPES, OF_NAME, tensor_bytes
from herd.train.checkpoints.storage import MARKER, Bytes, Folder, Written

SCHEMA = 1
METADATA = "metadata.json"
MANIFEST = "manifest.json"


class Damaged(Exception):
    """A checkpoint is not what was written; the text names the file and what is wrong with it."""


class Opened(NamedTuple):
    """A checkpoint whose small files are checked, and whose others are all there in their size."""

    folder: Folder
    name: str
    files: dict[str, Written]
    step: int
    ranks: int
    tensors: dict[str, Any]
    extra: dict[str, Any]

    def has(self, name: str, shape: torch.Size) -> bool:
        """Whether there is a tensor of this name and global shape."""
        return name in self.tensors and tuple(self.tensors[name]["shape"]) == tuple(shape)


def checkpoint_name(step: int) -> str:
    """Name of the folder of the state after so many steps."""
    return f"step-{step:09d}"


def open_checkpoint(folder: Folder, name: str, sizes: bool = True) -> Opened:
    """Check the marker, manifest and metadata of a checkpoint and, unless another process does, its files' sizes.

    Raises Damaged; HerdError for a later schema; OSError where a file is there but can't be read.
    """
    manifest = read_manifest(folder, name)
    files = {each: Written(**facts) for each, facts in manifest["files"].items()}
    for each, written in files.items() if sizes else ():
        size = _there(lambda each=each: folder.size(f"{name}/{each}"), each)
        if size != written.bytes:
            raise Damaged(f"{each} has {size:,} bytes instead of {written.bytes:,}")
    text = _there(lambda: folder.read(f"{name}/{METADATA}"), METADATA)
    if hashlib.sha256(text).hexdigest() != files[METADATA].sha256:
        raise Damaged(f"{METADATA} does not match its SHA-256")
    facts = json.loads(text)
    return Opened(folder, name, files, facts["step"], facts["ranks"], facts["tensors"], facts["extra"])


def read_manifest(folder: Folder, name: str) -> dict[str, Any]:
    """The manifest, checked against the marker. Raises as open_checkpoint does."""
    marker = _there(lambda: folder.read(f"{name}/{MARKER}"), MARKER)
    text = _there(lambda: folder.read(f"{name}/{MANIFEST}"), MANIFEST)
    if hashlib.sha256(text).hexdigest().encode() != marker.strip():
        raise Damaged(f"{MANIFEST} does not match the SHA-256 in {MARKER}")
    manifest = json.loads(text)
    if manifest["schema"] != SCHEMA:
        raise HerdError(f"{folder}/{name}: schema {manifest['schema']}, this version of herd reads {SCHEMA}")
    return manifest


class Writer(StorageWriter):
    """Writes one checkpoint of tensors; one file a process, those of equal tensors in one of them only."""

    def __init__(
        self,
        folder: Folder,
        step: int,
        extra: dict[str, Any],
        loss: float | None,
        before_write: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`extra` must be JSON; the first process's `extra` and `loss` are kept. `before_write` may raise OSError."""
        self._before_write = before_write
        self.folder, self.step, self.extra, self.loss = folder, step, extra, loss
        self.name = checkpoint_name(step)
        self.draft = folder.draft(self.name)
        self.begun = False
        self.rank = 0
        self.file_of: dict[tuple[str, torch.Size | None], str] = {}
        self.ranks = 1

    def _write(self, file: str, pieces: Iterable[Bytes]) -> Written:
        self._before_write(file)
        return self.folder.write(f"{self.draft}/{file}", pieces)

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.rank = kwargs.get("rank", 0)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                raise TypeError(f"{item.index.fqn}: only tensors are saved here; the rest is JSON in {METADATA}")
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.begun = True
        self.folder.begin(self.draft)
        self.ranks = len(plans)
        for rank, plan in enumerate(plans):
            for item in plan.items:
                self.file_of[item.index.fqn, item.index.offset] = _file_name(rank)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        if plan.items:
            file = _file_name(self.rank)
            written = self._write(file, _safetensors(plan.items, planner))
            results.append(WriteResult(MetadataIndex(file), written.bytes, written))
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files = {one.index.fqn: one.storage_data for each in results for one in each}
        for file, written in files.items():
            try:
                whole = self.folder.size(f"{self.draft}/{file}") == written.bytes
            except FileNotFoundError:
                whole = False
            if not whole:
                raise HerdError(f"{self.folder}: each process must reach this folder; {file} of another is not there")
        tensors = {
            name: {
                "shape": list(one.size),
                "dtype": DTYPES[one.properties.dtype],
                "chunks": [
                    {
                        "offsets": list(chunk.offsets),
                        "sizes": list(chunk.sizes),
                        "file": self.file_of[name, chunk.offsets],
                        "key": _key(name, chunk, one.size),
                    }
                    for chunk in one.chunks
                ],
            }
            for name, one in metadata.state_dict_metadata.items()
            if isinstance(one, TensorStorageMetadata)
        }
        facts = {"schema": SCHEMA, "step": self.step, "ranks": self.ranks, "extra": self.extra, "tensors": tensors}
        files[METADATA] = self._write(METADATA, [canonical_json(facts).encode()])
        manifest = {
            "schema": SCHEMA,
            "step": self.step,
            "loss": self.loss,
            "files": {name: written._asdict() for name, written in sorted(files.items())},
        }
        sealed = self._write(MANIFEST, [canonical_json(manifest, indent=1).encode()])
        self.folder.publish(self.name)
        self.folder.mark(f"{self.name}/{MARKER}", sealed.sha256 + "\n")

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False


class Reader(StorageReader):
    """Reads an opened checkpoint. A file that a process reads from is checked against its SHA-256 first.

    So is each of those whose turn it is (file number modulo the number of processes), whether it is read or not.
    Damaged is raised in every process before a tensor is touched. For use in a `with` block, which holds the local
    copies of files from afar.
    """

    def __init__(self, opened: Opened, ranks: int = 1) -> None:
        self.opened, self.ranks = opened, ranks
        self.rank = 0
        self.paths: dict[str, Path] = {}
        self.stack = ExitStack()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata({name: _tensor_metadata(facts) for name, facts in self.opened.tensors.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.rank = kwargs.get("rank", 0)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        stored = sorted(self.opened.files.keys() - {METADATA})
        needed = {self._chunk(item)["file"] for item in plan.items} | set(stored[self.rank :: self.ranks])
        paths = {f"{self.opened.name}/{file}": file for file in sorted(needed)}
        try:
            found = self.stack.enter_context(self.opened.folder.checked(paths))
        except FileNotFoundError as error:
            raise Damaged(f"{Path(str(error.filename or error)).name} is missing") from None
        for path, file in paths.items():
            self.paths[file], read = found[path]
            if read != self.opened.files[file]:
                raise Damaged(f"{file} does not match its SHA-256")
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            by_file[self._chunk(item)["file"]].append(item)
        for name, items in by_file.items():
            with safe_open(self.paths[name], "pt") as file:
                for item in items:
                    piece: Tensor = file.get_tensor(self._chunk(item)["key"])
                    for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                        piece = piece.narrow(dim, start, length)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(piece)
                    planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False

    def _chunk(self, item: ReadItem) -> dict[str, Any]:
        index = item.storage_index
        chunks = self.opened.tensors[index.fqn]["chunks"]
        if index.index is not None and chunks[index.index]["offsets"] == list(index.offset or ()):
            return chunks[index.index]
        return next(one for one in chunks if one["offsets"] == list(index.offset or ()))


def _file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _key(name: str, chunk: ChunkStorageMetadata, shape: torch.Size) -> str:
    """Name of a chunk inside its file: the tensor's own where it is whole."""
    return name if chunk.sizes == shape else f"{name}@{','.join(map(str, chunk.offsets))}"


def _safetensors(items: list[WriteItem], planner: SavePlanner) -> Iterator[Bytes]:
    """The bytes of a safetensors file, one tensor after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for item in items:
        data = item.tensor_data
        assert data is not None and data.chunk is not None  # what is no tensor was refused
        dtype, sizes = data.properties.dtype, data.chunk.sizes
        key, count = _key(item.index.fqn, data.chunk, data.size), math.prod(sizes) * dtype.itemsize
        header[key] = {"dtype": DTYPES[dtype], "shape": list(sizes), "data_offsets": [at, at + count]}
        at += count
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for item in items:
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, Tensor)
        yield tensor_bytes(tensor.detach())


def _tensor_metadata(facts: Mapping[str, Any]) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(one["offsets"]), torch.Size(one["sizes"])) for one in facts["chunks"]]
    properties = TensorProperties(dtype=OF_NAME[facts["dtype"]])
    return TensorStorageMetadata(properties, torch.Size(facts["shape"]), chunks)


def _there(read: Any, name: str) -> Any:
    try:
        return read()
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
