"""Token shards: curated documents as token ids, one stream per group of the mix and kind of document.

A stream holds its training documents in an order drawn from the seed, each written as begin-of-text, tokens,
end-of-text. Streams stay apart so that training can weigh them, and where each document starts is kept, so that a
token leads back to its document. Held-out documents stay separate documents, with their length in bytes, so that
losses can be given in bits per byte.

Neither writing nor reading needs the memory for a corpus. Documents are encoded in the order of the file and dealt
into buckets by their place in the seed's order; then one bucket after the other is sorted and appended to its
streams. The files that come out are mapped, so a batch costs the pages that it touches.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq
import torch

from herd.artifact import Artifact, Draft
from herd.console import HerdError, progress
from herd.data.documents import read_rows
from herd.model.formats.weights import Stored, Weights, open_tensors, write_tensors
from herd.model.tokenizer import Tokenizer
from herd.recipe import Section

SCHEMA = 2
BATCH_DOCUMENTS = 512
BUCKET_BYTES = 64_000_000  # text; its tokens, in 16 or 32 bits, take about as much memory or less
MAX_BUCKETS = 4096  # files in one folder; 4096 buckets hold 260 GB of text within their size
UNGROUPED = "general"

_COLUMNS = ["id", "kind", "language", "split", "group", "bytes", "text"]
# What is known of an encoded document while it waits in its bucket.
_ROW = np.dtype(
    [
        ("rank", "<u8"),
        ("id", "<u8"),
        ("tokens", "<i8"),
        ("bytes", "<i8"),
        ("stream", "<u2"),
        ("language", "<u2"),
        ("held", "?"),
    ]
)


class ShardSettings(Section):
    seed: int


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents: `tokens` of all, document i being tokens[starts[i]:starts[i+1]], and facts of each."""

    tokens: np.ndarray
    starts: np.ndarray
    bytes: np.ndarray
    ids: list[str]
    kinds: list[str]
    languages: list[str]
    groups: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Shards:
    """Training streams by `group/kind`, where their documents start and which they are, and held-out documents.

    `starts[stream]` (documents + 1, int64) are token positions, the last one the stream's length; `ids[stream]`
    (documents, uint64) are the documents' ids as numbers. The arrays are mapped files: slices are read when used.
    """

    streams: dict[str, np.ndarray]
    heldout: HeldOut
    vocab_size: int
    bos_id: int
    starts: dict[str, np.ndarray] = field(default_factory=dict)
    ids: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def train_tokens(self) -> int:
        return sum(len(stream) for stream in self.streams.values())

    def document_at(self, stream: str, position: int) -> str:
        """Id of the document that a token of a stream belongs to.

        Raises HerdError for a stream that is not there or a position outside it.
        """
        if stream not in self.starts:
            raise HerdError(f"no stream '{stream}'; there are: {', '.join(sorted(self.starts))}")
        starts = self.starts[stream]
        if not 0 <= position < starts[-1]:
            raise HerdError(f"stream '{stream}' has {starts[-1]:,} tokens; there is none at {position:,}")
        return f"{int(self.ids[stream][np.searchsorted(starts, position, 'right') - 1]):016x}"


def shard(settings: ShardSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: encode inputs["curate"] with inputs["tokenizer"].

    Writes `train.safetensors` (tokens by stream), `provenance.safetensors` (starts and ids by stream),
    `heldout.safetensors` and `shards.json`. Raises HerdError where nothing is left to train on or to hold out.
    """
    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    work = out.work / "shards"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    buckets = _deal(settings.seed, inputs["curate"].file("documents.parquet"), tokenizer, dtype, work)
    streams = _Streams(work, dtype)
    with progress("shards: sorting", buckets.count) as bar:
        for index in range(buckets.count):
            for row, tokens in buckets.take(index):
                streams.add(buckets.streams[row["stream"]], buckets.languages[row["language"]], row, tokens)
            bar.update(index + 1)
    streams.close()
    if not streams.lengths or len(streams.held) < 2:
        trained = sum(map(len, streams.lengths.values()))
        raise HerdError(f"shards: {trained} documents to train on and {len(streams.held)} held out: add text")
    _write(out, streams, {"vocab_size": tokenizer.vocab_size, "bos_id": tokenizer.bos_id})
    shutil.rmtree(work)


def _deal(seed: int, documents: Path, tokenizer: Tokenizer, dtype: type, work: Path) -> _Buckets:
    """Encode all documents, each into the bucket of its place in the seed's order."""
    with pq.ParquetFile(documents) as file:
        count = file.metadata.num_rows
    size = sum(row["bytes"] for row in read_rows(documents, ["bytes"]))
    buckets = _Buckets(work, min(MAX_BUCKETS, 1 + size // BUCKET_BYTES), dtype)
    done = 0
    with progress("shards: encoding", count) as bar:
        rows = read_rows(documents, _COLUMNS)
        while batch := list(islice(rows, BATCH_DOCUMENTS)):
            encoded = tokenizer.encode_documents([row["text"] for row in batch])
            framed = (np.concatenate(([tokenizer.bos_id], ids, [tokenizer.eos_id])) for ids in encoded)
            buckets.put(seed, zip(batch, framed, strict=True))
            done += len(batch)
            bar.update(done, "documents")
    return buckets


class _Buckets:
    """Encoded documents on disk, dealt by the leading bits of their rank."""

    def __init__(self, folder: Path, count: int, dtype: type) -> None:
        self.count, self._folder, self._dtype = count, folder, dtype
        self.streams: list[str] = []
        self.languages: list[str] = []

    def put(self, seed: int, documents: Iterable[tuple[Mapping[str, Any], np.ndarray]]) -> None:
        parts: dict[int, list[tuple[np.void, np.ndarray]]] = {}
        for document, tokens in documents:
            rank = _order(seed, document["id"])
            stream = f"{document['group'] or UNGROUPED}/{document['kind']}"
            facts = (
                rank,
                int(document["id"], 16),
                len(tokens),
                document["bytes"],
                _code(self.streams, stream),
                _code(self.languages, document["language"]),
                document["split"] != "train",
            )
            parts.setdefault((rank * self.count) >> 64, []).append((np.array(facts, _ROW)[()], tokens))
        for index, some in parts.items():
            _append(self._folder / f"{index}.rows", np.array([row for row, _ in some], _ROW))
            _append(self._folder / f"{index}.tokens", np.concatenate([t for _, t in some]).astype(self._dtype))

    def take(self, index: int) -> Iterator[tuple[np.void, np.ndarray]]:
        """A bucket's documents in order; its files are deleted behind it."""
        names = [self._folder / f"{index}.{part}" for part in ("rows", "tokens")]
        if not names[0].exists():
            return
        rows, tokens = np.fromfile(names[0], _ROW), np.fromfile(names[1], self._dtype)
        ends = np.cumsum(rows["tokens"])
        for i in np.lexsort((rows["id"], rows["rank"])):
            yield rows[i], tokens[ends[i] - rows["tokens"][i] : ends[i]]
        for name in names:
            name.unlink()


class _Streams:
    """Streams being written, a file each, and the held-out documents in another.

    What stays in memory: 16 bytes for a training document, the facts of those that are held out.
    """

    def __init__(self, folder: Path, dtype: type) -> None:
        self._folder, self.dtype = folder, dtype
        self._files: dict[str, BinaryIO] = {}
        self.lengths: dict[str, array[int]] = {}
        self.ids: dict[str, array[int]] = {}
        self.held: list[dict[str, Any]] = []

    def add(self, stream: str, language: str, row: np.void, tokens: np.ndarray) -> None:
        length, number = int(row["tokens"]), int(row["id"])
        if row["held"]:
            group, _, kind = stream.partition("/")
            facts = {"id": f"{number:016x}", "kind": kind, "group": group, "language": language}
            self.held.append({**facts, "bytes": int(row["bytes"]), "tokens": length})
        else:
            self.lengths.setdefault(stream, array("q")).append(length)
            self.ids.setdefault(stream, array("Q")).append(number)
        tokens.tofile(self._file("held" if row["held"] else stream))

    def _file(self, name: str) -> BinaryIO:
        if name not in self._files:
            self._files[name] = self.path(name).open("wb")
        return self._files[name]

    def path(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '.')}.stream"

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def stored(self, name: str, length: int) -> Stored:
        """A stream's tokens as a tensor that is mapped when it is asked for."""
        dtype = torch.uint16 if self.dtype == np.uint16 else torch.uint32
        return Stored((length,), dtype, lambda: torch.from_file(str(self.path(name)), size=length, dtype=dtype))


def _write(out: Draft, streams: _Streams, vocabulary: dict[str, int]) -> None:
    names = sorted(streams.lengths)
    starts = {name: _starts(streams.lengths[name]) for name in names}
    tokens = {name: streams.stored(name, int(starts[name][-1])) for name in names}
    write_tensors(out.folder / "train.safetensors", Weights(tokens))
    where = {f"{name}.starts": torch.from_numpy(starts[name]) for name in names}
    which = {f"{name}.ids": torch.from_numpy(np.array(streams.ids[name], np.uint64)) for name in names}
    write_tensors(out.folder / "provenance.safetensors", where | which)
    edges = _starts([row.pop("tokens") for row in streams.held])
    sizes = np.array([row.pop("bytes") for row in streams.held], np.int64)
    plain = {"starts": torch.from_numpy(edges), "bytes": torch.from_numpy(sizes)}
    held = {name: Stored(tuple(value.shape), value.dtype, lambda value=value: value) for name, value in plain.items()}
    held["tokens"] = streams.stored("held", int(edges[-1]))
    write_tensors(out.folder / "heldout.safetensors", Weights(held))
    facts = {
        "schema": SCHEMA,
        **vocabulary,
        "train_tokens": {name: int(starts[name][-1]) for name in names},
        "train_documents": {name: len(streams.lengths[name]) for name in names},
        "heldout_tokens": int(edges[-1]),
        "heldout": streams.held,
    }
    out.write_json("shards.json", facts)


def load_shards(folder: Path) -> Shards:
    """Map the shards of a published artifact; nothing is read but the held-out documents' facts.

    Raises HerdError where a file is missing or damaged, or was written by another version.
    """
    facts = json.loads((folder / "shards.json").read_text(encoding="utf-8"))
    if facts["schema"] != SCHEMA:
        raise HerdError(
            f"{folder / 'shards.json'}: schema {facts['schema']}, this version of herd reads {SCHEMA}; "
            "make it anew with --force shards"
        )
    held, documents = _mapped(folder / "heldout.safetensors"), facts["heldout"]
    provenance = _mapped(folder / "provenance.safetensors")
    ids, kinds, languages, groups = ([d[name] for d in documents] for name in ("id", "kind", "language", "group"))
    return Shards(
        _mapped(folder / "train.safetensors"),
        HeldOut(held["tokens"], held["starts"], held["bytes"], ids, kinds, languages, groups),
        facts["vocab_size"],
        facts["bos_id"],
        {name.removesuffix(".starts"): v for name, v in provenance.items() if name.endswith(".starts")},
        {name.removesuffix(".ids"): v for name, v in provenance.items() if name.endswith(".ids")},
    )


def _mapped(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in open_tensors(path).items()}


def _starts(lengths: Sequence[int]) -> np.ndarray:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _append(path: Path, values: np.ndarray) -> None:
    with path.open("ab") as file:
        values.tofile(file)


def _code(names: list[str], name: str) -> int:
    if name not in names:
        names.append(name)
    return names.index(name)


def _order(seed: int, document: str) -> int:
    """Place of a document in the seed's order: 64 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{document}".encode()).digest()[:8], "big")
